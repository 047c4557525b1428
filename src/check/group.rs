//! The group: may it be joined, and who is in it?
//!
//! Owns: the judgement. Pure. Its offsets have a file of their own (`offsets`).
//! Never: joins the group, or asks the broker (see `broker`).

use rdkafka::error::RDKafkaErrorCode;

use super::report::Row;
use super::topics::Allowed;

/// What the broker says of the group itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The `client.id` of each member.
    pub clients: Vec<String>,
    /// `None`: the broker does not say.
    pub allowed: Option<Allowed>,
}

/// Members and permissions. `client_id`: how the members of an onced call themselves.
pub fn rows(
    group: &str,
    client_id: &str,
    described: &Result<Described, RDKafkaErrorCode>,
) -> Vec<Row> {
    let subject = format!("group {group}");
    let described = match described {
        Ok(described) => described,
        // Nobody was ever in it.
        Err(RDKafkaErrorCode::GroupIdNotFound) => &Described::default(),
        Err(code) => return vec![refused(&subject, *code)],
    };
    let mut rows = vec![permission(&subject, described.allowed)];
    rows.extend(members(&subject, client_id, &described.clients));
    rows
}

/// The high-water group: onced commits for it and is no member of it.
pub fn high_water(group: &str, described: &Result<Described, RDKafkaErrorCode>) -> Row {
    let subject = format!("group {group}");
    let described = match described {
        Ok(described) => described,
        Err(RDKafkaErrorCode::GroupIdNotFound) => &Described::default(),
        Err(code) => return refused(&subject, *code),
    };
    match described.allowed {
        Some(Allowed { read: false, .. }) => Row::failed(
            &subject,
            "authorization failed: this user has no READ on the group",
            "onced keeps there how far the group has come: allow READ on it as well",
        ),
        _ if !described.clients.is_empty() => Row::failed(
            &subject,
            format!("has members ({}), and must have none", described.clients.join(", ")),
            "onced run ends with exit code 5: stop them, or choose another kafka.group",
        ),
        _ => Row::ok(&subject, "has no members; keeps how far the group has come"),
    }
}

/// The broker's answer to a question about the group.
pub fn refused(subject: &str, code: RDKafkaErrorCode) -> Row {
    if code == RDKafkaErrorCode::GroupAuthorizationFailed {
        let found = "authorization failed: this user may not read the group's offsets";
        return Row::failed(
            subject,
            found,
            "allow READ and DESCRIBE on the group, or use another user",
        );
    }
    Row::failed(
        subject,
        format!("the broker answers: {code}"),
        "mend that, or choose another kafka.group",
    )
}

fn permission(subject: &str, allowed: Option<Allowed>) -> Row {
    match allowed {
        Some(Allowed { read: true, .. }) => {
            Row::ok(subject, "may be joined, and its offsets committed")
        }
        Some(_) => Row::failed(
            subject,
            "authorization failed: this user has no READ on the group",
            "allow READ on it, or use another user",
        ),
        None => Row::note(
            subject,
            "whether this user may join it was not checked: the broker does not say it",
            "READ on the group is needed",
        ),
    }
}

fn members(subject: &str, client_id: &str, clients: &[String]) -> Option<Row> {
    let count =
        |count: usize| if count == 1 { "1 member".to_owned() } else { format!("{count} members") };
    if clients.is_empty() {
        return None;
    }
    let mut others: Vec<_> = clients.iter().filter(|client| *client != client_id).collect();
    if others.is_empty() {
        let found = format!("{} now: an onced of this group is running", count(clients.len()));
        return Some(Row::note(subject, found, ""));
    }
    let found = count(others.len());
    others.sort();
    others.dedup();
    let found = format!(
        "{found} now that may not be onced (client.id {others:?}): what others consume is not deduplicated"
    );
    Some(Row::warning(subject, found, "stop them, or choose another kafka.group"))
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[track_caller]
    fn check(described: Result<Described, RDKafkaErrorCode>, level: Level, found: &str) {
        let rows = rows("g", "onced", &described);
        let worst = rows.iter().max_by_key(|row| row.level).unwrap();
        assert_eq!(worst.level, level, "{rows:?}");
        assert!(worst.found.contains(found), "{rows:?}");
    }

    #[test]
    fn a_group_has_permissions_and_members() {
        let allowed = Some(Allowed { read: true, write: false });
        let with = |clients: &[&str], allowed| {
            Ok(Described {
                clients: clients.iter().map(|&client| client.to_owned()).collect(),
                allowed,
            })
        };
        check(with(&[], allowed), Level::Ok, "may be joined");
        check(with(&["onced"], allowed), Level::Note, "1 member now: an onced");
        check(
            with(&["onced", "app", "app"], allowed),
            Level::Warning,
            "2 members now that may not be onced (client.id [\"app\"])",
        );
        check(with(&[], Some(Allowed::default())), Level::Failed, "has no READ");
        check(with(&[], None), Level::Note, "not checked");
        check(Err(RDKafkaErrorCode::GroupIdNotFound), Level::Note, "not checked");
        check(
            Err(RDKafkaErrorCode::GroupAuthorizationFailed),
            Level::Failed,
            "authorization failed",
        );
    }
}
