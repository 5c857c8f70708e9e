//! A body that grows while it is sent.

use axum::body::Bytes;
use hyper::body::{Body, Frame};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{Receiver, Sender};

/// Pieces that may wait for the client.
const QUEUE: usize = 64;

/// The receiving end of a channel, as a body.
#[derive(Debug)]
pub(super) struct Pieces(Receiver<Bytes>);

pub(super) fn channel() -> (Sender<Bytes>, Pieces) {
    let (tx, rx) = tokio::sync::mpsc::channel(QUEUE);
    (tx, Pieces(rx))
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|b| b.map(|b| Ok(Frame::data(b))))
    }
}
