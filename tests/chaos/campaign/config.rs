//! The daemons' configuration: short timeouts, so that many faults fit.

use std::fmt::Write as _;
use std::path::Path;

use crate::faults::daemon_lane::SESSION_TIMEOUT;
use crate::traffic::{OUTPUT, Route};

use super::{GROUP, WINDOW};

pub fn of(routes: &[Route], brokers: &str, url: &str, admin: u16, data: &Path) -> String {
    let mut text = format!(
        r#"[kafka]
brokers = "{brokers}"
group = "{GROUP}"
commit_interval = "200ms"
transaction_interval = "100ms"

[kafka.properties]
"session.timeout.ms" = {session}
"heartbeat.interval.ms" = 500
"transaction.timeout.ms" = 5000
"socket.timeout.ms" = 5000
"reconnect.backoff.max.ms" = 500
"topic.metadata.refresh.interval.ms" = 5000

[log]
dir = "{data}"
memory = "32MiB"
flush_interval = "2s"
disk_reserve = "64MiB"

[admin]
listen = "127.0.0.1:{admin}"

[runtime]
workers = 2
drain_timeout = "5s"
"#,
        session = SESSION_TIMEOUT.as_millis(),
        data = data.display(),
    );
    for route in routes {
        let (name, input, letters) = (route.name(), route.input(), route.letters());
        let window = WINDOW.as_secs();
        let (mode, handler) = match route {
            Route::Once => ("exactly-once", format!("kind = \"kafka\"\ntopic = \"{OUTPUT}\"")),
            Route::Least => (
                "at-least-once",
                format!("kind = \"http\"\nurl = \"{url}\"\ntimeout = \"5s\"\nconcurrency = 32"),
            ),
        };
        write!(
            text,
            r#"
[routes.{name}]
topics = ["{input}"]
mode = "{mode}"

[routes.{name}.identity]
key = ["header:Idempotency-Key"]
missing = "dead-letter"

[routes.{name}.window]
ttl = "{window}s"

[routes.{name}.handler]
{handler}

[routes.{name}.dead_letter]
topic = "{letters}"
"#
        )
        .expect("text can be written");
        if *route == Route::Least {
            text.push_str("\n[routes.least.retry]\nbackoff = { first = \"20ms\", max = \"1s\" }\n");
        }
    }
    text
}
