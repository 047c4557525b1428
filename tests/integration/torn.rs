//! Between the daemon and its broker: connections that break, requests that are late, answers
//! that never come.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{DaemonBuilder, Kafka, unique};
use crate::kafka_proxy::{Proxy, Which};
use crate::scene::{SOON, counts, keys_on_stdout, numbered, set, stdout_daemon, wait_caught_up};

/// A broker with a second listener, before which stands a proxy.
pub struct Proxied {
    pub proxy: Proxy,
    pub kafka: Kafka,
    /// `host:port` of the proxy.
    pub bootstrap: String,
}

impl Proxied {
    /// `None`, and a line that says so, where no broker can be started.
    pub fn start_or_skip(test: &str) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let bootstrap = listener.local_addr().expect("it is bound").to_string();
        let listeners = "PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
            PROXIED://127.0.0.1:{extra}";
        let advertised = format!("PLAINTEXT://127.0.0.1:{{port}},PROXIED://{bootstrap}");
        let protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT";
        let kafka = Kafka::private_or_skip(
            test,
            &[
                ("listeners", listeners),
                ("advertised.listeners", &advertised),
                ("listener.security.protocol.map", protocols),
            ],
        )?;
        let (_, target) = kafka.extra().rsplit_once(':').expect("host:port");
        let target = target.parse().expect("a port is a number");
        let proxy = Proxy::serve(vec![(listener, target)]).expect("a proxy");
        Some(Self { proxy, kafka, bootstrap })
    }

    /// A daemon whose every connection goes through the proxy.
    pub fn through(&self, builder: DaemonBuilder) -> DaemonBuilder {
        let builder =
            set(builder.on(&self.kafka), &format!("kafka.brokers=\"{}\"", self.bootstrap));
        // A broken connection is tried again soon, also after many of them.
        set(builder, "kafka.properties.\"reconnect.backoff.max.ms\"=500")
    }

    /// Runs `disturb` while records are sent, `batch` at a time, past the proxy. Returns how many.
    pub fn while_records_flow(&self, topic: &str, batch: usize, disturb: impl FnOnce()) -> usize {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    self.kafka.produce(topic, numbered(sent..sent + batch));
                    sent += batch;
                    thread::sleep(Duration::from_millis(50));
                }
                sent
            });
            // Also when it panics: else the scope would wait for the sender for ever.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(disturb));
            stop.store(true, Ordering::Relaxed);
            let sent = sending.join().expect("it sends");
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent
        })
    }
}

#[test]
fn connections_that_are_cut_lose_nothing_and_repeat_nothing() {
    let test = "connections_that_are_cut_lose_nothing_and_repeat_nothing";
    let Some(scene) = Proxied::start_or_skip(test) else { return };
    let Proxied { proxy, kafka, bootstrap } = &scene;
    let (topic, group) = (kafka.topic("cut").partitions(2).create(), unique("cut"));
    let mut onced = scene.through(stdout_daemon(&group, &topic)).start();
    onced.wait_ready();
    let sent = scene.while_records_flow(&topic, 50, || {
        for number in 0..10 {
            thread::sleep(Duration::from_millis(300));
            proxy.cut_all();
            if number % 3 == 0 {
                proxy.refuse(Duration::from_millis(500));
            }
        }
        proxy.blackhole(Duration::from_secs(2));
        proxy.drop_responses(Which::OffsetCommit, 5);
        proxy.drop_responses(Which::Fetch, 5);
        proxy.delay(Which::Heartbeat, Duration::from_millis(500), 3);
        let begun = Instant::now();
        while proxy.planned() > 0 {
            assert!(begun.elapsed() < SOON, "not all faults happen: {}", proxy.planned());
            thread::sleep(Duration::from_millis(20));
        }
    });
    // A producer through it works as well.
    kafka.produce_with(&[("bootstrap.servers", bootstrap)], &topic, numbered(sent..sent + 10));
    wait_caught_up(kafka, &onced, &group, &topic);
    let injected = proxy.injected();
    assert!(injected.cut >= 10, "{injected:?}");
    assert_eq!((injected.dropped, injected.delayed), (10, 3));
    let handled = counts(keys_on_stdout(&onced));
    assert_eq!(handled.len(), sent + 10, "nothing is lost");
    let repeated = handled.values().sum::<usize>() - handled.len();
    assert_eq!(repeated, 0, "the log of the same process knows what was handled");
}
