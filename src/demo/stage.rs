//! The story itself, step by step, with everything that runs for it.
//!
//! Owns: what happens when, and what is waited for. Never: judges (see `report`).

use std::collections::HashSet;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::runtime::Runtime;

use super::child::{CONCURRENCY, Daemon, Surroundings};
use super::cluster::{Cluster, Counts, PaymentProducer};
use super::failure::{Failure, Look};
use super::home::Home;
use super::pages::Samples;
use super::report::{Handled, Kill, Numbers, Sent, Settled};
use super::scenario::Scenario;
use super::screen::Screen;
use super::service::Service;
use crate::shutdown::Shutdown;

/// For one step.
const PATIENCE: Duration = Duration::from_secs(25);

pub(super) struct Stage<'a> {
    // Dropped first: it must not see the others go.
    daemon: Daemon<'a>,
    service: Service,
    cluster: Cluster,
    screen: Screen,
    scenario: Scenario,
}

impl<'a> Stage<'a> {
    /// Starts everything, the daemon last.
    pub(super) fn set_up(
        scenario: Scenario,
        screen: Screen,
        home: &'a Home,
        runtime: &Runtime,
        shutdown: &'a Shutdown,
    ) -> Result<Self, Failure> {
        screen.step(
            "Start",
            "A small Kafka (a mock inside this process), a payment service and the daemon start \
             on this machine. The daemon is this same program, as `onced run`.",
        );
        let cluster = Cluster::start().map_err(Failure::kafka("start the mock cluster"))?;
        let service = Service::start(runtime)?;
        let url = service.url();
        let surroundings = Surroundings { brokers: cluster.brokers(), payments_url: &url };
        let daemon = Daemon::prepare(home, &surroundings, runtime.handle().clone(), shutdown)?;
        let mut stage = Self { daemon, service, cluster, screen, scenario };
        stage.start_daemon("the daemon joins its group")?;
        Ok(stage)
    }

    /// Everything up to the numbers. The daemon still runs after it.
    pub(super) fn play(&mut self) -> Result<Numbers, Failure> {
        let producer = self.producer()?;
        self.send_first_part(&producer)?;
        self.wait_for_the_worst_moment()?;
        let before = self.kill()?;
        let in_flight = self.service.ledger().unanswered().len() as u64;
        self.start_again()?;
        let sent = self.send_the_rest(producer)?;
        let after = self.finish(&sent)?;
        self.screen.step(
            "Check",
            "The books of the payment service, the dead-letter topic and the daemon's own \
             metrics have to agree with what was sent.",
        );
        let dead_letters = self.cluster.dead_letters(PATIENCE);
        Ok(Numbers {
            sent: Sent::of(&self.scenario),
            kill: Kill { concurrency: CONCURRENCY as u64, in_flight },
            handled: Handled::of(&self.service.ledger(), &self.scenario),
            settled: before + after.settled(),
            dead_letters: dead_letters.map_err(Failure::kafka("read the dead letters"))?,
            uncommitted: after.uncommitted(&sent),
        })
    }

    pub(super) fn stop_daemon(&mut self) -> Result<(), Failure> {
        self.daemon.stop()
    }

    pub(super) fn metrics_page(&self) -> String {
        format!("http://{}/metrics", self.daemon.admin())
    }

    fn start_daemon(&mut self, what: &str) -> Result<(), Failure> {
        let spinner = self.screen.spinner(what);
        let started = self.daemon.start();
        spinner.finish_and_clear();
        started
    }

    fn producer(&self) -> Result<PaymentProducer, Failure> {
        self.cluster.producer().map_err(Failure::kafka("start a producer"))
    }

    fn send_first_part(&mut self, producer: &PaymentProducer) -> Result<(), Failure> {
        self.screen.step(
            "Send",
            "Clients publish payments. Some hear nothing for a while and send the same payment \
             again, under the same Idempotency-Key. The daemon looks each key up in its log and \
             calls the payment service only for a new one.",
        );
        self.service.ledger().withhold_after(self.scenario.answered);
        self.send(producer, 0, self.scenario.kill_at)
    }

    fn send(&self, producer: &PaymentProducer, from: usize, to: usize) -> Result<(), Failure> {
        let records = &self.scenario.records[from..to];
        producer.send(&self.scenario, records).map_err(Failure::kafka("send payments"))
    }

    /// The service has charged and not answered, as often as the daemon calls at once.
    fn wait_for_the_worst_moment(&mut self) -> Result<(), Failure> {
        let bar = self.charged_bar();
        let service = &self.service;
        let what = format!("{CONCURRENCY} calls are in flight");
        self.daemon.wait(&what, PATIENCE, |_| {
            let ledger = service.ledger();
            bar.set_position(ledger.bookings().len() as u64);
            match ledger.unanswered().len() {
                CONCURRENCY.. => Look::Holds(()),
                count => Look::NotYet(format!("{count} in flight")),
            }
        })?;
        self.screen.leave(&bar);
        Ok(())
    }

    /// Kills the daemon. What it had settled, by its own count.
    fn kill(&mut self) -> Result<Settled, Failure> {
        self.screen.step(
            "Kill",
            &format!(
                "The worst moment: the service has charged {CONCURRENCY} payments more and has \
                 not answered yet. Now the daemon is killed (SIGKILL). It can write nothing down."
            ),
        );
        // Its counts end with it. They are read when all is settled that does not wait for the
        // service, so that they can be added to those of the next start.
        let expected = self.settled_without_calls_in_flight();
        let what = "the daemon has settled everything but the calls in flight";
        let settled = self.daemon.wait(what, PATIENCE, |daemon| {
            let settled = match daemon.pages().metrics() {
                Ok(samples) => samples.settled(),
                Err(error) => return Look::NotYet(error),
            };
            if settled.records() >= expected {
                return Look::Holds(settled);
            }
            Look::NotYet(format!("{} of {expected} records are settled", settled.records()))
        })?;
        self.daemon.kill()?;
        self.service.ledger().answer_again();
        Ok(settled)
    }

    /// Records of the first part that can be settled while the last calls have no answer.
    fn settled_without_calls_in_flight(&self) -> u64 {
        let ledger = self.service.ledger();
        let answered =
            ledger.bookings().iter().filter(|(key, _)| !ledger.unanswered().contains(*key));
        let answered: HashSet<&str> = answered.map(|(_, it)| &*it.order.payment.id).collect();
        let sent = self.scenario.records[..self.scenario.kill_at].iter();
        sent.filter(|it| answered.contains(&*self.scenario.payment(**it).key)).count() as u64
    }

    fn start_again(&mut self) -> Result<(), Failure> {
        self.screen.step(
            "Start again",
            &format!(
                "The same data directory, so the daemon knows what it has handled. What became of \
                 the {CONCURRENCY} calls nobody knows: it makes them again, under the same \
                 Idempotency-Key, and the service recognises them."
            ),
        );
        self.start_daemon("the group notices that its member died, and takes the new one")
    }

    fn send_the_rest(&mut self, producer: PaymentProducer) -> Result<Counts, Failure> {
        self.screen.step(
            "Send the rest",
            "Duplicates of payments from before the kill are among it. The producer restarts and \
             sends its last records again. And one old key comes back with another amount: that \
             is no repeat, and nobody but a person can say what is meant.",
        );
        let (from, restart) = (self.scenario.kill_at, self.scenario.restart_at);
        self.send(&producer, from, restart)?;
        let stopped = Failure::kafka("stop a producer");
        let mut sent = producer.stop().map_err(&stopped)?;
        let restarted = self.producer()?;
        self.send(&restarted, restart, self.scenario.records.len())?;
        for (partition, count) in restarted.stop().map_err(&stopped)? {
            *sent.entry(partition).or_default() += count;
        }
        Ok(sent)
    }

    /// Waits until the group has committed everything that was sent.
    fn finish(&mut self, sent: &Counts) -> Result<Samples, Failure> {
        let bar = self.charged_bar();
        let service = &self.service;
        let what = "the group has committed everything that was sent";
        let samples = self.daemon.wait(what, PATIENCE, |daemon| {
            bar.set_position(service.ledger().bookings().len() as u64);
            match daemon.pages().metrics() {
                Ok(samples) if samples.uncommitted(sent) == 0 => Look::Holds(samples),
                Ok(samples) => Look::NotYet(format!("{} records left", samples.uncommitted(sent))),
                Err(error) => Look::NotYet(error),
            }
        })?;
        self.screen.leave(&bar);
        Ok(samples)
    }

    fn charged_bar(&self) -> ProgressBar {
        self.screen.bar("payments charged", self.scenario.payments.len() as u64)
    }
}
