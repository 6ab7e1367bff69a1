//! COMMIT. One shard that was written to commits by itself; several commit in two phases:
//!
//! 1. All but one, the anchor, prepare: from here on each of them can commit, whatever happens to it.
//! 2. The anchor notes the decision and commits: that is the commit of all.
//! 3. The others commit what they have prepared.
//!
//! What breaks before step 2 rolls everything back, what breaks later is committed. When this
//! process does not live to do so, any proxy does, see [`two_phase`](crate::two_phase).

use std::time::Duration;

use automator67_planner::catalog::ShardId;
use tokio::time::Instant;

use super::Session;
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    failpoint, message,
    neighbours::Until,
    process::Process,
    server::{Answer, Server, call::Call, relay},
    settings::TwoPhaseMode,
    two_phase::{self, Ability, Moments, Name, Note},
};

mod noted;

/// How long a commit tries to learn what an anchor has done that no longer answers, and to finish
/// on a shard that was lost. The recovery goes on after that.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came back from one step on one shard.
enum Step {
    Done,
    /// The server rolled back instead: its part had failed before.
    RolledBack,
    Failed(Failure),
}

impl Session {
    /// COMMIT on every shard that joined. Those that were only read from come last: their locks
    /// may guard what was written elsewhere.
    pub(super) async fn commit_links(&mut self, explicit: bool) -> Outcome {
        if self.transaction.is_silent()
            && let Err(failure) = self.write_at_home().await
        {
            self.rollback_links().await?;
            return Err(failure);
        }
        for far in &mut self.transaction.far {
            // Until it is known whether it has committed.
            far.until = Until::Decided;
        }
        let writers = self.writers();
        let read = self.moments_read(&writers).await?;
        let anchor = match writers.len() {
            0 | 1 => None,
            _ => self.anchor(&writers).await?,
        };
        if self.transaction.is_silent() && anchor != Some(self.home()) {
            self.announce_change_or_roll_back().await?;
        }
        if let Some(anchor) = anchor {
            self.commit_in_two_phases(anchor, &writers, &read).await?;
        } else if let ([writer], false) = (&writers[..], read.is_empty()) {
            self.commit_with_note(*writer, &read).await?;
        } else {
            self.commit_one_by_one(&writers).await?;
        }
        self.commit_readers(writers.is_empty()).await?;
        let made = std::mem::take(&mut self.transaction.made_by_code);
        self.settle().await;
        if !made.is_empty() && Box::pin(self.keep_settings(made)).await.is_err() {
            // The session keeps its connections, and this one is lost with what was set there.
            tracing::debug!(
                session = self.card.id,
                "settings that code has made are lost"
            );
        }
        if writers.len() > 1 && self.process.settings.two_phase == TwoPhaseMode::Prefer {
            self.warn_several_writers(&writers, explicit);
        }
        Ok(())
    }

    /// The epoch is about to be written there.
    async fn write_at_home(&mut self) -> Outcome {
        let index = self.link(self.home()).await?;
        self.links[index].wrote = true;
        Ok(())
    }

    async fn announce_change_or_roll_back(&mut self) -> Outcome {
        let announced = Box::pin(self.announce_change()).await;
        if announced.is_err() {
            self.rollback_links().await?;
        }
        announced
    }

    /// COMMIT on each shard with changes. With more than one, a failure in the middle leaves some
    /// committed: the error names them.
    async fn commit_one_by_one(&mut self, writers: &[ShardId]) -> Outcome {
        let mut committed: Vec<String> = Vec::new();
        for (position, shard) in writers.iter().enumerate() {
            let name = self.shard_name(*shard);
            let step = match self.link_position(*shard) {
                Some(index) => {
                    self.links[index].server.query("COMMIT", Answer::Shown);
                    let step = self.answer_of(index, "COMMIT", position == 0).await;
                    self.links[index].begun = false;
                    self.links[index].wrote = false;
                    step
                }
                None => Step::RolledBack,
            };
            let failure = match step {
                Step::Done => {
                    committed.push(name);
                    continue;
                }
                Step::RolledBack => rolled_back(&name),
                Step::Failed(failure) => failure,
            };
            self.rollback_links().await?;
            return Err(partial_commit(&name, failure, &committed));
        }
        Ok(())
    }

    /// COMMIT where nothing was written. What is lost there is not missed, but a shard that has
    /// rolled back instead shows that the transaction had failed.
    async fn commit_readers(&mut self, all: bool) -> Outcome {
        for link in self.links.iter_mut().filter(|link| link.begun) {
            link.server.query("COMMIT", Answer::Shown);
            // What cannot be sent is noticed when the answer is read.
            let _ = relay::send(&mut link.server).await;
        }
        let mut failed = None;
        let mut pass_status = all;
        for index in 0..self.links.len() {
            if !self.links[index].begun {
                continue;
            }
            let step = self.answer_of(index, "COMMIT", pass_status).await;
            pass_status = false;
            self.links[index].begun = false;
            self.links[index].wrote = false;
            let name = self.shard_name(self.links[index].server.shard_id());
            match step {
                Step::Done => {}
                Step::RolledBack => {
                    failed.get_or_insert_with(|| rolled_back(&name));
                }
                Step::Failed(failure @ Failure::Shard(_)) => {
                    failed.get_or_insert(failure);
                }
                Step::Failed(_) => {}
            }
        }
        self.drop_broken_links();
        match failed.filter(|_| all) {
            None => Ok(()),
            Some(failure) => {
                self.forget_transaction(false);
                Err(failure)
            }
        }
    }

    fn warn_several_writers(&mut self, writers: &[ShardId], explicit: bool) {
        let able = choose_anchor(&self.process, writers).is_ok();
        if able || !self.settings.own.warnings || !explicit && self.warned_several {
            return;
        }
        self.warned_several |= !explicit;
        let count = writers.len();
        Report::error(
            "01000",
            format!("transaction wrote on {count} shards without two-phase commit"),
        )
        .warning()
        .detail("If a shard had failed during the commit, others would have kept their part.")
        .write(self.client.output());
    }

    /// Shards that were written to, ascending.
    fn writers(&self) -> Vec<ShardId> {
        let wrote = self.links.iter().filter(|link| link.begun && link.wrote);
        let mut writers: Vec<ShardId> = wrote.map(|link| link.server.shard_id()).collect();
        writers.sort_unstable();
        writers
    }

    /// The shard that decides: the lowest, where all can prepare; the one that cannot, where that
    /// is one. `None`: there is no such commit, and the settings allow to do without.
    async fn anchor(&mut self, writers: &[ShardId]) -> Outcome<Option<ShardId>> {
        match self.deciding_shard(writers).await {
            Ok(anchor) => Ok(Some(anchor)),
            Err(_) if self.process.settings.two_phase == TwoPhaseMode::Prefer => Ok(None),
            Err(report) => {
                self.rollback_links().await?;
                Err(report.into())
            }
        }
    }

    async fn deciding_shard(&mut self, writers: &[ShardId]) -> Result<ShardId, Report> {
        for shard in writers {
            let shard = self.process.shard(*shard)?.clone();
            if two_phase::ensure(&shard).await == Ability::Unknown {
                return Err(shard.unreachable("no answer before the commit"));
            }
        }
        choose_anchor(&self.process, writers)
    }

    /// Refuses a second shard's write early, where the commit would refuse it.
    pub(super) fn allow_second_writer(&self, shard: ShardId) -> Outcome {
        let mut writers = self.writers();
        let alone = writers.is_empty() || writers.contains(&shard);
        if alone || self.process.settings.two_phase == TwoPhaseMode::Prefer {
            return Ok(());
        }
        writers.push(shard);
        choose_anchor(&self.process, &writers)?;
        Ok(())
    }

    async fn commit_in_two_phases(
        &mut self,
        anchor: ShardId,
        writers: &[ShardId],
        read: &Moments,
    ) -> Outcome {
        let parts: Vec<ShardId> = writers
            .iter()
            .copied()
            .filter(|one| *one != anchor)
            .collect();
        let turn = self.transaction.turn.take();
        let mut turn = turn.unwrap_or_else(|| self.process.two_phase.turn());
        let Some(number) = turn.begin() else {
            self.rollback_links().await?;
            return Err(no_slot());
        };
        let name = self.process.two_phase.name(number, anchor, &parts);
        if !two_phase::fits(&self.process.two_phase.gid(&name, anchor)) {
            turn.rolled_back();
            self.rollback_links().await?;
            return Err(too_many_shards());
        }
        let note = turn.note(self.process.two_phase.proxy(), number, writers, read);
        let decided = match self.prepare(&name, &note).await {
            Ok(()) => self.decide(&name, &note).await,
            Err(failure) => Err(Undecided::RolledBack(failure)),
        };
        match decided {
            Ok(()) => {}
            Err(Undecided::RolledBack(failure)) => {
                if self.undo(&name).await {
                    turn.rolled_back();
                }
                self.rollback_links().await?;
                return Err(failure);
            }
            Err(Undecided::Unknown) => {
                self.abandon_links();
                self.process.two_phase.look_now();
                self.forget_transaction(false);
                return Err(unknown_outcome(&name));
            }
        }
        if self.finish(&name).await {
            turn.committed(number, writers);
        }
        failpoint::reach("commit.before_acknowledge", None).await;
        Ok(())
    }

    /// Step 1.
    async fn prepare(&mut self, name: &Name, note: &Note) -> Outcome {
        let parts = &name.parts;
        let note = note.add_to(Call::to("note_commit"));
        self.fail_at("commit.before_prepare", parts[0]).await;
        let mut failed = None;
        for shard in parts {
            if let Some(index) = self.link_position(*shard) {
                let gid = self.process.two_phase.gid(name, *shard);
                let server = &mut self.links[index].server;
                server.call(&note, Answer::Shown);
                server.run(&format!("PREPARE TRANSACTION '{gid}'"), Answer::Shown);
                server.sync();
                if let Err(failure) = relay::send(server).await {
                    failed.get_or_insert(failure);
                }
            }
            self.fail_at("commit.one_prepare_sent", *shard).await;
        }
        for shard in parts {
            let step = match self.link_position(*shard) {
                Some(index) => self.answer_of(index, "PREPARE TRANSACTION", false).await,
                None => Step::RolledBack,
            };
            match step {
                Step::Done => {}
                Step::RolledBack => {
                    let name = self.shard_name(*shard);
                    failed.get_or_insert_with(|| rolled_back(&name));
                }
                Step::Failed(failure) => {
                    failed.get_or_insert(failure);
                }
            }
            self.fail_at("commit.after_one_prepared", *shard).await;
        }
        match failed {
            None => {
                self.fail_at("commit.after_prepare", parts[0]).await;
                Ok(())
            }
            Some(failure) => Err(failure),
        }
    }

    /// Step 2.
    async fn decide(&mut self, name: &Name, note: &Note) -> Result<(), Undecided> {
        let anchor = name.anchor;
        self.fail_at("commit.before_commit", anchor).await;
        let Some(index) = self.link_position(anchor) else {
            return Err(Undecided::Unknown);
        };
        let server: &mut Server = &mut self.links[index].server;
        if self.transaction.is_silent() {
            // On the home shard. Others who change the schema wait for this COMMIT, and no longer.
            server.call(&self.transaction.announcement(), Answer::Shown);
        }
        server.call(&note.add_to(Call::to("decide").with(name)), Answer::Shown);
        server.run("COMMIT", Answer::Shown);
        server.sync();
        // What cannot be sent is noticed when the answer is read.
        let _ = relay::send(server).await;
        self.fail_at("commit.commit_sent", anchor).await;
        match self.answer_of(index, "COMMIT", true).await {
            Step::Done => {}
            Step::RolledBack => {
                let name = self.shard_name(anchor);
                return Err(Undecided::RolledBack(rolled_back(&name)));
            }
            Step::Failed(failure @ (Failure::Report(_) | Failure::Farewell(_))) => {
                return self.learn_decision(name, failure).await;
            }
            Step::Failed(failure) => return Err(Undecided::RolledBack(failure)),
        }
        if let Some(link) = self.links.get_mut(index) {
            link.begun = false;
        }
        self.fail_at("commit.after_commit", anchor).await;
        Ok(())
    }

    /// The anchor's answer was lost: has it committed?
    async fn learn_decision(&mut self, name: &Name, failure: Failure) -> Result<(), Undecided> {
        let anchor = name.anchor;
        if let Some(index) = self.link_position(anchor) {
            self.links.remove(index).server.close();
        }
        let Ok(shard) = self.process.shard(anchor).cloned() else {
            return Err(Undecided::Unknown);
        };
        match two_phase::outcome(&shard, name, Instant::now() + PATIENCE).await {
            Some(true) => Ok(()),
            Some(false) => Err(Undecided::RolledBack(failure)),
            None => Err(Undecided::Unknown),
        }
    }

    /// Step 3. A shard that cannot be reached now is left to the recovery: it is committed. False:
    /// some are left.
    async fn finish(&mut self, name: &Name) -> bool {
        let (anchor, parts) = (name.anchor, &name.parts);
        self.fail_at("commit.before_second_phase", parts[0]).await;
        for shard in parts {
            if let Some(index) = self.link_position(*shard) {
                let gid = self.process.two_phase.gid(name, *shard);
                let server = &mut self.links[index].server;
                server.query(&format!("COMMIT PREPARED '{gid}'"), Answer::Shown);
                let _ = relay::send(server).await;
            }
            self.fail_at("commit.one_second_sent", *shard).await;
        }
        let mut left = Vec::new();
        for shard in parts {
            let done = match self.link_position(*shard) {
                Some(index) => self.answer_of(index, "COMMIT PREPARED", false).await,
                None => Step::RolledBack,
            };
            if !matches!(done, Step::Done) && !self.finish_elsewhere(name, *shard).await {
                left.push(self.shard_name(*shard));
            }
            self.fail_at("commit.after_one_second", *shard).await;
        }
        for shard in parts.iter().chain([&anchor]) {
            if let Some(index) = self.link_position(*shard) {
                self.links[index].begun = false;
                self.links[index].wrote = false;
            }
        }
        self.drop_broken_links();
        if !left.is_empty() {
            self.process.two_phase.look_now();
            Report::error(
                "01000",
                "the transaction is committed, but not visible on every shard yet",
            )
            .warning()
            .detail(format!("Shards that do not answer: {}.", left.join(", ")))
            .hint("It becomes visible when they answer again; see automator67.transactions.")
            .write(self.client.output());
        }
        failpoint::reach("commit.after_second_phase", None).await;
        left.is_empty()
    }

    /// Commits a prepared part over another connection.
    async fn finish_elsewhere(&mut self, name: &Name, shard: ShardId) -> bool {
        let gid = self.process.two_phase.gid(name, shard);
        let Ok(shard) = self.process.shard(shard).cloned() else {
            return false;
        };
        let deadline = Instant::now() + PATIENCE;
        two_phase::finish_surely(&self.process, &shard, &gid, true, deadline).await
    }

    /// Rolls back what was prepared. False: a part may be left.
    async fn undo(&mut self, name: &Name) -> bool {
        failpoint::reach("rollback.before_prepared", None).await;
        let mut all = true;
        for shard in &name.parts {
            let Some(index) = self.link_position(*shard) else {
                all = false;
                continue;
            };
            let server = &self.links[index].server;
            if !server.is_answered() || server.status != b'I' {
                // Still in its transaction: it was not prepared. A broken connection says nothing.
                all &= server.is_answered();
                continue;
            }
            // Where the part was not prepared, because it failed, there is nothing of this name.
            let gid = self.process.two_phase.gid(name, *shard);
            let text = format!("ROLLBACK PREPARED '{gid}'");
            let answer = self.step_on(*shard, &text, "ROLLBACK PREPARED").await;
            all &= !matches!(answer, Step::Failed(Failure::Report(_)));
            if let Some(index) = self.link_position(*shard) {
                self.links[index].begun = false;
                self.links[index].wrote = false;
            }
            self.fail_at("rollback.after_one", *shard).await;
        }
        if !all {
            self.process.two_phase.look_now();
        }
        all
    }

    /// One statement on a shard that takes part.
    async fn step_on(&mut self, shard: ShardId, text: &str, tag: &str) -> Step {
        let Some(index) = self.link_position(shard) else {
            return Step::Failed(rolled_back(&self.shard_name(shard)));
        };
        self.links[index].server.query(text, Answer::Shown);
        self.answer_of(index, tag, false).await
    }

    /// The answer to what was sent; its last command tag must be `tag`.
    async fn answer_of(&mut self, index: usize, tag: &str, pass_status: bool) -> Step {
        let mut seen = String::new();
        let mut epoch = None;
        let output = &mut self.client.wire.output;
        let server = &mut self.links[index].server;
        let settled = relay::settle(output, server, |output, frame| match frame.tag {
            b'C' => message::command_tag(frame.body()).clone_into(&mut seen),
            b'D' => epoch = epoch.or_else(|| first_number(frame.body())),
            // SET LOCAL ends alike everywhere.
            b'S' if pass_status => output.extend_from_slice(&frame.bytes),
            _ => {}
        });
        let settled = settled.await;
        if let Some(epoch) = epoch {
            self.transaction.announced(epoch);
        }
        match settled {
            Err(failure) => Step::Failed(failure),
            Ok(())
                if seen.split(' ').take(2).eq(tag.split(' ').take(2)) || seen.starts_with(tag) =>
            {
                Step::Done
            }
            Ok(()) => Step::RolledBack,
        }
    }

    /// Connections with something under way are not lent again.
    fn drop_broken_links(&mut self) {
        let (whole, broken): (Vec<_>, Vec<_>) = std::mem::take(&mut self.links)
            .into_iter()
            .partition(|link| link.server.is_answered());
        self.links = whole;
        broken.into_iter().for_each(|link| link.server.close());
    }

    /// Leaves every open part as it is.
    fn abandon_links(&mut self) {
        for link in std::mem::take(&mut self.links) {
            link.server.close();
        }
    }

    async fn fail_at(&mut self, step: &'static str, shard: ShardId) {
        let link = self
            .links
            .iter_mut()
            .find(|link| link.server.shard_id() == shard);
        failpoint::reach(step, link.map(|link| &mut *link.server)).await;
    }
}

/// The epoch in a DataRow, where it has one.
fn first_number(body: &[u8]) -> Option<u64> {
    let values = message::data_row(body)?;
    std::str::from_utf8(values.first().copied()??)
        .ok()?
        .parse()
        .ok()
}

/// As [`Session::anchor`], by what is known of the shards.
fn choose_anchor(process: &Process, writers: &[ShardId]) -> Result<ShardId, Report> {
    let mut anchor = None;
    for id in writers {
        let shard = process.shard(*id)?;
        match shard.two_phase() {
            Ability::Ready | Ability::Unknown => {}
            Ability::DecideOnly if anchor.is_none() => anchor = Some(*id),
            Ability::DecideOnly => {
                let name = &shard.settings.name;
                let why = format!("max_prepared_transactions is 0 on shard \"{name}\"");
                return Err(no_two_phase(&why));
            }
            Ability::Unable(why) => return Err(no_two_phase(&why)),
        }
    }
    Ok(anchor.or(writers.first().copied()).unwrap_or_default())
}

/// How the anchor's COMMIT went wrong.
enum Undecided {
    /// Nothing is committed anywhere.
    RolledBack(Failure),
    /// The anchor does not answer.
    Unknown,
}

/// The error of a commit that failed on one shard, with what the others did.
fn partial_commit(name: &str, failure: Failure, committed: &[String]) -> Failure {
    if committed.is_empty() {
        return failure;
    }
    let cause = match &failure {
        Failure::Report(report) | Failure::Farewell(report) => report.message.clone(),
        Failure::Shard(frame) => {
            let body = &frame[crate::frame::HEADER_BYTES..];
            message::error_field(body, b'M')
                .unwrap_or_default()
                .to_owned()
        }
        Failure::Told(_) | Failure::ClientGone => String::new(),
    };
    Report::error(
        failure.sqlstate(),
        format!("commit failed on shard \"{name}\": {cause}"),
    )
    .detail(format!("Committed on: {}.", committed.join(", ")))
    .hint("The transaction is incomplete: look at its rows on every shard before you repeat it.")
    .into()
}

fn no_two_phase(why: &str) -> Report {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "a transaction cannot write on several shards here",
    )
    .detail(format!("Two-phase commit is not possible: {why}."))
    .hint("Set max_prepared_transactions on the servers, write on one shard per transaction, or set two_phase = \"prefer\" in the configuration and accept that a crash can leave a part of a transaction.")
}

fn no_slot() -> Failure {
    Report::error(
        sqlstate::PROGRAM_LIMIT_EXCEEDED,
        "there is no slot left for a commit over several shards",
    )
    .detail("A million commits of this proxy were left to the recovery since it started.")
    .hint("Start it again, and look why shards do not answer.")
    .into()
}

fn too_many_shards() -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "the transaction wrote on too many shards",
    )
    .hint("Split it into several.")
    .into()
}

fn rolled_back(shard: &str) -> Failure {
    Report::error(
        sqlstate::IN_FAILED_SQL_TRANSACTION,
        format!("shard \"{shard}\" rolled the transaction back"),
    )
    .into()
}

fn unknown_outcome(name: &Name) -> Failure {
    Report::error(
        sqlstate::TRANSACTION_RESOLUTION_UNKNOWN,
        "the transaction's outcome is not known yet",
    )
    .detail(format!("The shard that decides transaction \"{name}\" does not answer. It has committed everywhere or nowhere."))
    .hint("Look at its rows when the shard is back; automator67.transactions shows it until it has ended.")
    .into()
}
