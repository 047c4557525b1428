use std::collections::BTreeSet;

use super::*;

/// The names in the exposition, by their HELP lines.
fn exposed(text: &str) -> BTreeSet<String> {
    let help = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    help.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn labels_of<L: Label>() -> Vec<&'static str> {
    L::ALL.iter().map(|label| label.text()).collect()
}

#[test]
fn every_family_is_exposed_once_a_route_and_a_partition_are_there() {
    let metrics = Metrics::new();
    let _route = metrics.route("payments");
    let _partition = metrics.partition("payments", 3);
    let names: BTreeSet<String> = names().into_iter().collect();
    assert_eq!(exposed(&metrics.encode()), names);
}

#[test]
fn the_families_of_the_contract_are_there() {
    let names = names();
    let contract = "records_total outcomes_total dead_letters_total handler_seconds end_to_end_seconds \
        duplicate_distance_seconds log_lookup_seconds log_write_seconds log_entries log_bytes \
        log_expired_total window_seconds position committed_offset lag_records \
        absorb_remaining_records in_flight skipped_total rebalances_total ready build_info \
        scope_missing_total undated_total transactions_total transaction_seconds";
    for name in contract.split_whitespace() {
        assert!(names.contains(&format!("onced_{name}")), "{name}");
    }
    assert_eq!(names.iter().filter(|name| name.starts_with("onced_")).count(), 25);
    assert!(names.contains(&"process_resident_memory_bytes".to_owned()));
}

#[test]
fn every_label_is_there_at_zero_from_the_start() {
    let metrics = Metrics::new();
    let _route = metrics.route("payments");
    let text = metrics.encode();
    for line in [
        "onced_records_total{route=\"payments\",verdict=\"in_doubt\"} 0",
        "onced_outcomes_total{outcome=\"fatal\",route=\"payments\"} 0",
        "onced_dead_letters_total{reason=\"missing-identity\",route=\"payments\"} 0",
        "onced_handler_seconds_count{route=\"payments\"} 0",
        "onced_rebalances_total{kind=\"lost\"} 0",
        "onced_ready 0",
        concat!("onced_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}

#[test]
fn labels_are_those_of_the_contract_and_each_has_its_own_counter() {
    let verdicts =
        ["fresh", "duplicate", "replayed", "conflict", "in_doubt", "unidentified", "absorbed"];
    assert_eq!(labels_of::<VerdictLabel>(), verdicts);
    assert_eq!(labels_of::<OutcomeLabel>(), ["done", "retry", "reject", "fatal"]);
    let reasons =
        ["rejected", "exhausted", "conflict", "missing-identity", "undecodable", "too-large"];
    assert_eq!(labels_of::<Reason>(), reasons);
    assert!(Reason::ALL.iter().enumerate().all(|(at, reason)| reason.index() == at));
    let metrics = Metrics::new();
    let route = metrics.route("payments");
    for (at, verdict) in VerdictLabel::ALL.iter().enumerate() {
        route.records.add(*verdict, at as u64 + 1);
    }
    assert_eq!(metrics.route("payments").records.get(VerdictLabel::Absorbed), 7);
    assert_eq!(metrics.route("other").records.get(VerdictLabel::Absorbed), 0);
}

#[test]
fn a_revoked_partition_leaves_nothing_behind() {
    let metrics = Metrics::new();
    let (third, fourth) = (metrics.partition("payments", 3), metrics.partition("payments", 4));
    third.position.set(7);
    fourth.position.set(8);
    third.remove();
    third.remove();
    let text = metrics.encode();
    assert!(!text.contains("partition=\"3\""), "{text}");
    assert!(text.contains("onced_position{partition=\"4\",topic=\"payments\"} 8"), "{text}");
    assert_eq!(metrics.partition("payments", 3).position.get(), 0);
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    let metrics = Metrics::new();
    let _route = metrics.route("payments");
    let _partition = metrics.partition("payments", 3);
    for family in metrics.registry.gather() {
        let name = family.name();
        let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
        assert_eq!(name.ends_with("_total"), counter, "{name}");
        assert!(family.help().ends_with('.') || name.starts_with("process_"), "{name}");
    }
}

#[test]
fn buckets_rise_and_are_few() {
    let all: [&[f64]; 5] =
        [&HANDLER_BUCKETS, &END_TO_END_BUCKETS, &LOOKUP_BUCKETS, &WRITE_BUCKETS, &DISTANCE_BUCKETS];
    for buckets in all {
        assert!(buckets.len() <= 15 && buckets.is_sorted_by(|a, b| a < b), "{buckets:?}");
    }
}

#[test]
fn what_a_worker_observes_by_itself_counts_once_it_is_flushed() {
    let route = Metrics::new().route("payments");
    let local = route.end_to_end_seconds.local();
    local.observe(0.2);
    assert_eq!(route.end_to_end_seconds.get_sample_count(), 0);
    local.flush();
    assert_eq!(route.end_to_end_seconds.get_sample_count(), 1);
}
