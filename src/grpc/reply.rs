//! Answers on their way to h2: which of them go together.
//!
//! Guarantees: an answer with a seed in it is alone in what is written at once, so that the next one is written over it. h2 gathers what
//! it writes in one buffer of 16 KiB that lives as long as the connection, and a crowd of seeds stood in it until as many answers
//! came again. All other answers share a write. Refuses to know what an answer says.

use crate::message::{self, Outcome};
use crate::request_log::Served;
use bytes::Bytes;
use h2::server::SendResponse;
use std::collections::VecDeque;

/// The answer to a request, and the way back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) to: SendResponse<Bytes>,
    pub(super) outcome: Outcome,
    /// Whether there is a seed in it.
    pub(super) is_secret: bool,
    /// What is to be logged when it has been sent.
    pub(super) served: Option<Served>,
}

impl Reply {
    fn send(mut self) -> Option<Served> {
        if let Err(error) = message::send(&mut self.to, self.outcome) {
            tracing::debug!(target: "kube_kms::grpc", %error, "nobody waits for this answer any more");
        }
        self.served
    }
}

/// What h2 has been given since it has last written everything that it could.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Given {
    #[default]
    Nothing,
    Open,
    Secret,
}

/// The answers of one connection that h2 does not have yet.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    open: Vec<Reply>,
    secret: VecDeque<Reply>,
    given: Given,
    /// Whether a seed has waited for others, so that it comes before the next ones.
    is_turn: bool,
}

impl Outbox {
    pub(super) fn add(&mut self, reply: Reply) {
        if reply.is_secret {
            self.secret.push_back(reply);
        } else {
            self.open.push(reply);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.secret.is_empty()
    }

    /// h2 has written what it could.
    pub(super) const fn written(&mut self) {
        self.given = Given::Nothing;
    }

    /// Gives h2 what may be written together now; returns what is to be logged of it.
    pub(super) fn give(&mut self, sent: &mut Vec<Served>) {
        if self.given == Given::Secret {
            return;
        }
        let secret_first = self.is_turn && self.given == Given::Nothing && !self.secret.is_empty();
        if !secret_first && !self.open.is_empty() {
            sent.extend(self.open.drain(..).filter_map(Reply::send));
            self.given = Given::Open;
        }
        if self.given == Given::Nothing
            && let Some(reply) = self.secret.pop_front()
        {
            sent.extend(reply.send());
            self.given = Given::Secret;
        }
        self.is_turn = self.given == Given::Open;
    }
}
