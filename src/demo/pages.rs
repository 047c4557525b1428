//! What the daemon says of itself: `/readyz` and `/metrics`.
//!
//! Never: changes anything.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use tokio::runtime::Handle;

use super::cluster::{Counts, TOPIC};
use super::failure::Look;
use super::report::Settled;

/// The route of the demo's configuration.
pub(super) const ROUTE: &str = "payments";

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Pages {
    admin: SocketAddr,
    client: Client,
    runtime: Handle,
}

impl Pages {
    pub(super) fn new(admin: SocketAddr, runtime: Handle) -> Result<Self, reqwest::Error> {
        let client = Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Self { admin, client, runtime })
    }

    pub(super) fn ready(&self) -> Look<()> {
        match self.get("readyz") {
            Ok((StatusCode::OK, _)) => Look::Holds(()),
            Ok((_, reasons)) => Look::NotYet(reasons.trim().to_owned()),
            Err(error) => Look::NotYet(error),
        }
    }

    /// # Errors
    /// The daemon does not answer.
    pub(super) fn metrics(&self) -> Result<Samples, String> {
        self.get("metrics").map(|(_, text)| Samples::parse(&text))
    }

    fn get(&self, page: &str) -> Result<(StatusCode, String), String> {
        let url = format!("http://{}/{page}", self.admin);
        let answer = async {
            let response = self.client.get(url).send().await?;
            Ok((response.status(), response.text().await?))
        };
        self.runtime.block_on(answer).map_err(|error: reqwest::Error| error.to_string())
    }
}

/// The samples of one look at `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Samples(HashMap<String, f64>);

impl Samples {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(lines.filter_map(sample).collect())
    }

    /// 0 where there is no such sample: what is not there was not counted.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    fn count(&self, name: &str) -> u64 {
        self.0.get(name).map_or(0, |value| *value as u64)
    }

    /// What the daemon has settled since it started.
    pub(super) fn settled(&self) -> Settled {
        let verdict = |verdict: &str| {
            self.count(&format!("onced_records_total{{route=\"{ROUTE}\",verdict=\"{verdict}\"}}"))
        };
        Settled {
            fresh: verdict("fresh"),
            duplicate: verdict("duplicate"),
            conflict: verdict("conflict"),
            other: verdict("unidentified") + verdict("in_doubt") + verdict("absorbed"),
        }
    }

    /// How many records lie beyond what the group has committed.
    pub(super) fn uncommitted(&self, sent: &Counts) -> u64 {
        let left = |(partition, end): (&i32, &u64)| {
            let name =
                format!("onced_committed_offset{{partition=\"{partition}\",topic=\"{TOPIC}\"}}");
            end.saturating_sub(self.count(&name))
        };
        sent.iter().map(left).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, VerdictLabel};

    #[test]
    fn the_counts_of_the_daemon_s_own_page_are_found() {
        let metrics = Metrics::new();
        let route = metrics.route(ROUTE);
        route.records.add(VerdictLabel::Fresh, 5);
        route.records.add(VerdictLabel::Duplicate, 4);
        route.records.add(VerdictLabel::Conflict, 3);
        route.records.add(VerdictLabel::Replayed, 2);
        route.records.add(VerdictLabel::Unidentified, 1);
        metrics.partition(TOPIC, 2).committed_offset.set(7);
        let samples = Samples::parse(&metrics.encode());
        let settled = Settled { fresh: 5, duplicate: 4, conflict: 3, other: 1 };
        assert_eq!(samples.settled(), settled);
        assert_eq!(samples.uncommitted(&Counts::from([(2, 7)])), 0);
        assert_eq!(samples.uncommitted(&Counts::from([(1, 2), (2, 10)])), 2 + 3);
    }
}
