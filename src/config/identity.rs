//! The identity of a route: which sources there are, and which of them make no sense together.
//!
//! Never: knows how a source is spelled (see `crate::identity`).

use super::section::{Choices, Section};
use super::{Conflict, raw};
use crate::identity::{Canonical, Config, Digest, Fingerprint, KeySource};

const CANONICAL: &Choices<Canonical> =
    &[("json", Ok(Canonical::Json)), ("bytes", Ok(Canonical::Bytes))];

const DIGEST: &Choices<Digest> = &[("blake3", Ok(Digest::Blake3)), ("xxh3", Ok(Digest::Xxh3))];

pub(super) fn resolve(at: &mut Section<'_>, raw: &raw::Identity, conflict: Conflict) -> Config {
    let default = Config::default();
    let keys = keys(at, raw.key.as_deref(), default.keys);
    Config {
        keys,
        scope: at.items("identity.scope", raw.scope.as_deref()).unwrap_or(default.scope),
        fingerprint: fingerprint(at, &raw.fingerprint, default.fingerprint),
        digest: at.choice("identity.digest", raw.digest.as_deref(), DIGEST, default.digest),
        payload_in_identity: conflict == Conflict::Process,
    }
}

fn keys(at: &mut Section<'_>, given: Option<&[String]>, default: Vec<KeySource>) -> Vec<KeySource> {
    if given.is_some_and(<[String]>::is_empty) {
        at.problem(
            "identity.key",
            "must name at least one source, as in [\"header:Idempotency-Key\"]",
        );
    }
    let keys = at.items("identity.key", given).unwrap_or(default);
    let fingerprint = keys.iter().position(|key| *key == KeySource::Fingerprint);
    if fingerprint.is_some_and(|at| at + 1 < keys.len()) {
        at.problem(
            "identity.key",
            "\"fingerprint\" must come last: every record has one, and no later source is tried",
        );
    }
    keys
}

fn fingerprint(at: &mut Section<'_>, raw: &raw::Fingerprint, default: Fingerprint) -> Fingerprint {
    const KEY: &str = "identity.fingerprint";
    let canonical = at.choice(
        &format!("{KEY}.canonical"),
        raw.canonical.as_deref(),
        CANONICAL,
        default.canonical,
    );
    let mut pointers = |key: &str, given: Option<&[String]>| {
        let key = format!("{KEY}.{key}");
        if canonical == Canonical::Bytes && given.is_some_and(|given| !given.is_empty()) {
            at.problem(&key, "needs canonical = \"json\": bytes have no fields");
        }
        at.items(&key, given).unwrap_or_default()
    };
    Fingerprint {
        canonical,
        include: pointers("include", raw.include.as_deref()),
        exclude: pointers("exclude", raw.exclude.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_route_refused, load_set, route};

    #[test]
    fn a_conflict_that_is_processed_puts_the_payload_into_the_identity() {
        assert!(!route(&[]).identity.payload_in_identity);
        assert!(route(&["policy.conflict=process"]).identity.payload_in_identity);
    }

    #[test]
    fn a_source_that_does_not_exist_is_named() {
        let error = load_set(&[
            "routes.payments.identity.key=['headr:x', 'record-key']",
            "routes.payments.identity.fingerprint.exclude=['a']",
        ])
        .unwrap_err();
        let keys: Vec<_> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
        let section = "routes.payments.identity";
        assert_eq!(keys, [format!("{section}.key"), format!("{section}.fingerprint.exclude")]);
        assert!(error.problems[0].message.contains("\"headr:x\""), "{error}");
    }

    #[test]
    fn sources_that_can_never_be_reached_are_refused() {
        for keys in ["[]", "['fingerprint', 'record-key']"] {
            let error = load_set(&[&format!("routes.payments.identity.key={keys}")]).unwrap_err();
            assert_eq!(error.problems.len(), 1, "{error}");
            assert_eq!(error.problems[0].key, "routes.payments.identity.key");
        }
    }

    #[test]
    fn bytes_have_no_fields() {
        check_route_refused(
            &["identity.fingerprint={ canonical = 'bytes', exclude = ['/sent_at'] }"],
            &[
                "identity.fingerprint.exclude = [\"/sent_at\"]: needs canonical = \"json\": bytes have no \
               fields (--set routes.payments.identity.fingerprint)",
            ],
        );
    }
}
