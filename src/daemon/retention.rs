//! Compares each window with what its topics keep: a log that is lost is rebuilt from them.

use std::sync::Arc;

use crate::config::Config;
use crate::dedup::expiry::millis;
use crate::pipeline::Kept;
use crate::source::admin::{TopicSettings, topic_settings};

/// For how long each input topic can be read again, as far as the broker says; warns where that
/// is less than the window.
pub(super) async fn look(config: &Config) -> Kept {
    let mut kept = Kept::default();
    for route in &config.routes {
        let window = millis(route.window.ttl).saturating_add(millis(route.window.lateness));
        for topic in &route.topics {
            let Some(settings) = settings(config, topic).await else { continue };
            if let Some(ms) = settings.keeps_ms() {
                kept.insert(Arc::clone(topic), ms);
                warn_if_short(&route.name, topic, ms, window);
            }
            if let Some(bytes) = settings.retention_bytes {
                tracing::info!(%topic, bytes, "The topic is also limited by retention.bytes; a busy hour may shorten what a rebuild can protect.");
            }
        }
        if let Some(topic) = &route.dead_letter
            && let Some(ms) = settings(config, topic).await.and_then(|settings| settings.keeps_ms())
        {
            warn_if_short(&route.name, topic, ms, window);
        }
    }
    kept
}

async fn settings(config: &Config, topic: &str) -> Option<TopicSettings> {
    match topic_settings(&config.kafka, topic).await {
        Ok(settings) => Some(settings),
        Err(error) => {
            tracing::warn!(topic, %error, "The topic's settings cannot be read; they are not compared with the window.");
            None
        }
    }
}

fn warn_if_short(route: &str, topic: &str, keeps_ms: i64, window_ms: i64) {
    if keeps_ms < window_ms {
        tracing::warn!(
            route,
            topic,
            keeps_ms,
            window_ms,
            "The topic keeps less than window.ttl and window.lateness together: after a lost disk, older messages are not recognised."
        );
    }
}
