//! Finding an expert: the router's pick, the next one after a loss, and when to go on without.

use cascadia_core::ids::NodeId;
use cascadia_core::limits;
use cascadia_node::owner::Output;
use cascadia_proto::{convert, fault, v1};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::Generation;
use crate::expert_link::{Expert, ExpertLink};
use crate::node::Wanted;

/// How a session goes on after a look for an expert.
pub(super) enum Found {
    Link(Box<ExpertLink>),
    /// There is none, and the request would rather go on alone.
    Alone,
}

/// Why a stream to an expert is over.
pub(super) enum ExpertLoss {
    /// The expert is dead, hung or cut off: nobody shall choose it for a while.
    Lost,
    /// It does not go on with this session; it may well serve others.
    Refused(Status),
    /// It drains.
    Leaving,
}

impl ExpertLoss {
    pub(super) fn of(status: Status) -> Self {
        use std::error::Error as _;
        let is_transport = status.source().is_some();
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled => Self::Lost,
            _ if is_transport => Self::Lost,
            _ => Self::Refused(status),
        }
    }
}

/// Whether another expert would say the same. The time that is up is the session's own.
pub(super) fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::Unimplemented
            | Code::DeadlineExceeded
            | Code::DataLoss
    )
}

impl Generation<'_> {
    /// The stream to the expert that the router picked, or to another if that one is lost or nobody here knows it.
    pub(super) async fn first_link(&mut self, output: &mut Output) -> Result<Found, Status> {
        if let Some(named) = &self.opening.open.expert {
            let id = NodeId(named.id.clone());
            match self.node.expert(&id, &self.opening.open.model, &self.pinned) {
                Some(picked) => {
                    if let Some(link) = self.try_link(picked).await? {
                        return Ok(self.hold(link, output));
                    }
                    self.session.reopen();
                }
                None => tracing::warn!(expert = %id, "the router names an expert that membership does not know here"),
            }
            self.lost = Some(Instant::now());
        }
        self.search(v1::MoveReason::Loss, output).await
    }

    /// The stream to the next expert.
    pub(super) async fn next_link(
        &mut self,
        lost: Box<ExpertLink>,
        loss: &ExpertLoss,
        output: &mut Output,
    ) -> Result<Found, Status> {
        self.failed.insert(lost.expert.id.clone());
        if matches!(loss, ExpertLoss::Lost) {
            self.node.experts.failed(&lost.expert.id);
            self.node.connector.forget(&lost.expert.address);
        }
        drop(lost);
        self.session.reopen();
        self.lost = Some(Instant::now());
        let reason = if matches!(loss, ExpertLoss::Leaving) { v1::MoveReason::Drain } else { v1::MoveReason::Loss };
        self.search(reason, output).await
    }

    /// An expert said this; whoever fails session after session by its own fault is not asked for a while.
    pub(super) fn blame(&mut self, expert: &NodeId, status: &Status) {
        if fault::is_own(status) {
            self.node.experts.session_failed(expert, &self.opening.open.request_id);
            self.blamed.insert(expert.clone());
        }
    }

    /// Looks for an expert and tells the router which it is.
    async fn search(&mut self, reason: v1::MoveReason, output: &mut Output) -> Result<Found, Status> {
        let Some(link) = self.any_link().await? else { return Ok(Found::Alone) };
        self.say_moved(Some(link.expert.node_ref()), reason, output).await?;
        Ok(self.hold(link, output))
    }

    /// Whoever failed once may be back by now; the status stream says who is not.
    async fn pause(&mut self) {
        self.failed.clear();
        tokio::time::sleep(limits::WATCH_PERIOD).await;
    }

    fn pick(&self) -> Option<Expert> {
        let wanted = |exclude| Wanted {
            session: self.opening.session,
            model: &self.opening.open.model,
            pinned: &self.pinned,
            tokens: self.decoding.end(),
            exclude,
        };
        let trusted = self.node.pick(&wanted(self.failed.union(&self.faulty).cloned().collect()));
        if trusted.is_some() || self.faulty.is_empty() || self.prefers_drafter() {
            return trusted;
        }
        // Where nobody else has the model, a faulty expert gets its chance again: [`MAX_FRUITLESS`] bounds it.
        let others = self.node.knows(&wanted(self.faulty.clone()));
        if others { None } else { self.node.pick(&wanted(self.failed.clone())) }
    }

    fn prefers_drafter(&self) -> bool {
        let parameters = self.opening.resolved.parameters.as_ref();
        parameters.is_some_and(|p| p.on_expert_loss() == v1::OnExpertLoss::Drafter)
    }

    /// An expert that has just gone may only be restarting, and the drafter alone writes another text.
    fn may_come_back(&self) -> bool {
        self.lost.is_some_and(|lost| lost.elapsed() < limits::MAY_COME_BACK)
    }

    fn hold(&mut self, link: ExpertLink, output: &mut Output) -> Found {
        self.pinned.clone_from(&link.fingerprint);
        self.failed.clear();
        if !self.met {
            output.cached_tokens = link.held.min(self.prompt_tokens) as u32;
        }
        self.met = true;
        self.session.limit_depth(link.slots);
        if link.context > 0 {
            self.session.limit_context(link.context);
        }
        output.reproducible &= link.row_exact;
        Found::Link(Box::new(link))
    }

    /// Opens a stream; `None` where this expert is lost and another may do.
    async fn try_link(&mut self, expert: Expert) -> Result<Option<ExpertLink>, Status> {
        let id = expert.id.clone();
        let trace = self.spans.opening(&expert);
        let channel = self.node.connector.permit(&expert.address);
        let opened = tokio::select! {
                biased;
            opened = ExpertLink::open(channel, expert, self.verify_open(), self.session.told(), &trace) => opened.and_then(|link| {
                self.node.experts.cluster().admits_session(&id.0, &link.cluster)?;
                Ok(link)
            }),
            () = self.node.experts.gone(&id) => Err(Status::unknown("the expert is hung")),
        };
        let status = match opened {
            Ok(link) => {
                self.spans.opened(&link);
                return Ok(Some(link));
            }
            Err(status) => status,
        };
        self.spans.failed(&status);
        self.blame(&id, &status);
        // A session that has been served elsewhere is not at fault: this expert does not fit it.
        if is_final(&status) && !self.met {
            return Err(status);
        }
        tracing::warn!(expert = %id, %status, "expert does not take the session");
        self.met_full |= status.code() == Code::ResourceExhausted;
        if matches!(ExpertLoss::of(status), ExpertLoss::Lost) {
            self.node.experts.failed(&id);
        }
        self.failed.insert(id);
        Ok(None)
    }

    fn verify_open(&self) -> v1::VerifyOpen {
        let open = &self.opening.open;
        let mut resolved = self.opening.resolved.clone();
        if let Some(parameters) = &mut resolved.parameters {
            // One stop set on both sides: the owner's EOS is part of it.
            parameters.stop_token_ids.clone_from(&self.decoding.stop_ids);
            parameters.max_tokens = Some(self.decoding.max_tokens as u32);
        }
        v1::VerifyOpen {
            protocol: Some(cascadia_proto::range()),
            key: Some(convert::session_key_message(
                self.opening.session,
                self.session.epoch(),
                self.opening.secret.as_ref(),
            )),
            model: open.model.clone(),
            resolved: Some(resolved),
            tenant: open.tenant.clone(),
            priority: open.priority,
            cache_salt: open.cache_salt.clone(),
            remaining_ms: self.opening.remaining().as_millis() as u64,
            age_ms: self.opening.age().as_millis() as u64,
            prompt_tokens: self.prompt_tokens as u32,
            history_tokens: self.session.told().len() as u32,
            pinned_fingerprint: self.pinned.clone(),
            tokenizer_fingerprint: self.node.text.fingerprint().to_owned(),
            cluster: self.node.experts.cluster().to_string(),
        }
    }

    /// Looks for an expert until there is one; `None` where the request prefers the drafter alone.
    pub(super) async fn any_link(&mut self) -> Result<Option<ExpertLink>, Status> {
        loop {
            if let Some(expert) = self.pick() {
                if let Some(link) = self.try_link(expert).await? {
                    return Ok(Some(link));
                }
                self.session.reopen();
            } else if self.prefers_drafter() && !self.may_come_back() && !std::mem::take(&mut self.met_full) {
                // Experts that are only full are not lost: their sessions end, and this one's turn comes.
                return Ok(None);
            } else {
                self.pause().await;
            }
        }
    }
}
