//! The payment service that the daemon calls: HTTP on the loopback, in this process.
//!
//! Owns: the listener. Never: decides what a call means (see `ledger`).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::failure::Failure;
use super::ledger::{Answer, Ledger};

/// Answers as long as the runtime lives.
pub(super) struct Service {
    address: SocketAddr,
    ledger: Arc<Mutex<Ledger>>,
}

impl Service {
    pub(super) fn start(runtime: &Runtime) -> Result<Self, Failure> {
        let ledger = Arc::<Mutex<Ledger>>::default();
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let failed = Failure::io("listen on the loopback");
        let listener = runtime.block_on(listen).map_err(&failed)?;
        let address = listener.local_addr().map_err(&failed)?;
        let router = Router::new().route("/payments", post(pay)).with_state(Arc::clone(&ledger));
        // It ends with the runtime, and only then.
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, ledger })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/payments", self.address)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pay(
    State(ledger): State<Arc<Mutex<Ledger>>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let (Some(key), Ok(order)) = (key, serde_json::from_slice(&body)) else {
        return StatusCode::BAD_REQUEST;
    };
    let answer = lock(&ledger).call(key, order);
    match answer {
        Answer::Charged | Answer::Known => StatusCode::OK,
        Answer::Contradiction => StatusCode::UNPROCESSABLE_ENTITY,
        // Ends when the caller does.
        Answer::Withheld => std::future::pending().await,
    }
}
