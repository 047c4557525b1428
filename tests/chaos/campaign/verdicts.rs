//! What must hold, and whether it did.

use crate::ledger::Findings;
use crate::report::{Holds, Injected, Outcome, Records, Verdict};

/// `verify` is the exit code of `onced verify`, where it was run.
pub fn of(outcome: &Outcome, verify: Option<Option<i32>>) -> Vec<Verdict> {
    let mut verdicts = vec![acknowledged(outcome), injected(outcome)];
    if let Some(once) = &outcome.once {
        let seen = format!(
            "{} messages, {} outputs, {} of {} letters",
            once.messages, once.outputs, once.letters, once.letters_expected
        );
        verdicts.push(found("once: the driver's count", &once.findings, &seen));
        if let Some(code) = verify {
            verdicts.push(verified(code));
        }
    }
    if let Some(least) = &outcome.least {
        let seen = format!(
            "{} messages, {} calls, {} repeated ({} calls in quiet times), {} of {} letters",
            least.messages,
            least.calls,
            least.repeated,
            least.quiet_calls,
            least.letters,
            least.letters_expected
        );
        let mut verdict = found("least: the driver's count", &least.findings, &seen);
        if verdict.holds == Holds::Yes && least.quiet_calls == 0 {
            verdict.holds = Holds::Unknown;
            verdict.detail.push_str("; no call fell into a time without faults");
        }
        verdicts.push(verdict);
    }
    verdicts.push(Verdict {
        name: "no panic, no exit code but the allowed",
        holds: if outcome.wrong.is_empty() { Holds::Yes } else { Holds::No },
        detail: match outcome.wrong.first() {
            None => "none".to_owned(),
            Some(first) => format!("{}, the first: {first}", outcome.wrong.len()),
        },
    });
    verdicts
}

/// `stuck` says what did not come about in time after the last fault.
pub fn lively(stuck: Option<String>) -> Verdict {
    Verdict {
        name: "after the last fault everything is worked off",
        holds: if stuck.is_none() { Holds::Yes } else { Holds::No },
        detail: stuck.unwrap_or_else(|| "lag zero, no transaction open".to_owned()),
    }
}

fn acknowledged(outcome: &Outcome) -> Verdict {
    let total = |of: fn(&Records) -> u64| -> u64 { outcome.route_records.iter().map(of).sum() };
    let sent = total(|records| records.sent);
    let open = sent.saturating_sub(total(|records| records.acknowledged));
    let placeless = total(|records| records.placeless);
    Verdict {
        name: "every record was acknowledged",
        holds: if open == 0 { Holds::Yes } else { Holds::Unknown },
        detail: format!("{sent} sent, {open} unknown, {placeless} acknowledged without an offset"),
    }
}

fn injected(outcome: &Outcome) -> Verdict {
    let impossible = |fault: &Injected| fault.done == 0 && fault.impossible.is_some();
    let enough = |fault: &Injected| fault.done >= fault.asked || impossible(fault);
    let told: Vec<_> = outcome.injected.iter().map(Injected::to_string).collect();
    Verdict {
        name: "as many faults as asked for",
        holds: if outcome.injected.iter().all(enough) { Holds::Yes } else { Holds::Unknown },
        detail: told.join(", "),
    }
}

fn found(name: &'static str, findings: &Findings, seen: &str) -> Verdict {
    let counts: Vec<_> = findings.counts().map(|(kind, count)| format!("{count} {kind}")).collect();
    Verdict {
        name,
        holds: if findings.total() == 0 { Holds::Yes } else { Holds::No },
        detail: format!("{}; {seen}", counts.join(", ")),
    }
}

fn verified(code: Option<i32>) -> Verdict {
    Verdict {
        name: "once: onced verify",
        holds: match code {
            Some(0) => Holds::Yes,
            Some(6) => Holds::No,
            _ => Holds::Unknown,
        },
        detail: match code {
            Some(code) => format!("exit code {code}"),
            None => "did not end by itself".to_owned(),
        },
    }
}
