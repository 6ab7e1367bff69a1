//! The server connections a session holds: borrowed at a shard's first touch, given back at the
//! transaction's end.

use std::sync::{Arc, atomic::Ordering};

use automator67_planner::{
    catalog::{MadeSettings, Residue, ShardId},
    plan::SessionEffects,
};
use tokio_util::sync::CancellationToken;

use super::{
    Session,
    planning::{over, timed_out},
    shutting_down,
    snapshot::View,
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc::{self, SettingMap},
    pool::{self, Lease, Pool},
    process::{Process, lock},
    server::{self, Answer, SequenceOwner, relay},
};

/// A borrowed server connection.
pub struct Link {
    /// The connection.
    pub server: Lease,
    /// The transaction's BEGIN was sent.
    pub begun: bool,
    /// The transaction has written through it.
    pub wrote: bool,
    /// The transaction has seen tables through it, not only settings and the like.
    pub used: bool,
    /// Stays with the session.
    pinned: bool,
}

impl Link {
    /// Stays with the session.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// The client has left: the slot is free at once, and the shard stops what it was doing.
    pub fn abandon(self, process: &Arc<Process>) {
        let busy = !self.server.is_idle();
        let key = self.server.key.clone();
        if !busy && !self.pinned {
            return;
        }
        self.server.close();
        if busy {
            // A query that only waits would not notice a closed connection for long.
            process.tasks.spawn(async move {
                if let Err(error) = server::cancel(&key).await {
                    tracing::debug!(%error, "could not cancel for a client that left");
                }
            });
        }
    }
}

impl Session {
    /// The session's connection to a shard, ready for the next statement: borrowed if need be,
    /// with the session's settings, and with the transaction's BEGIN queued.
    pub(super) async fn link(&mut self, shard: ShardId) -> Outcome<usize> {
        if self.transaction.view == View::Wanted && self.transaction.is_open() {
            Box::pin(self.open_snapshots()).await?;
        }
        let index = self.idle_link(shard).await?;
        if self.transaction.is_open() && !self.links[index].begun {
            self.allow_to_join(index)?;
            self.queue_begin(index).await?;
        }
        Ok(index)
    }

    /// The same without BEGIN.
    pub(super) async fn idle_link(&mut self, shard: ShardId) -> Outcome<usize> {
        let position = self.link_position(shard);
        let mut index = match position {
            Some(index) => index,
            None => self.borrow(shard).await?,
        };
        if self.residue.reads_setting {
            index = Box::pin(self.without_strange_settings(index, position.is_none())).await?;
        }
        if !self.links[index].begun {
            // What the transaction itself has set comes behind BEGIN, so that ROLLBACK takes it back.
            let before = self
                .transaction
                .settings_before()
                .unwrap_or(&self.settings.map);
            if !self.links[index].server.settings.same(before) {
                let before = before.clone();
                self.apply_settings(index, &before).await?;
            }
        }
        if !self.placeholders.is_empty() {
            Box::pin(self.know_own_settings(index)).await?;
        }
        self.note_residue(index);
        Ok(index)
    }

    /// After a failure: another connection in the place of one that broke before the server has
    /// read anything of the statement, where nothing but the statement was on it. `None`: the
    /// statement must not be sent again.
    pub(super) async fn link_again(&mut self, index: usize) -> Option<usize> {
        let link = &self.links[index];
        if !link.server.unread || link.begun || link.pinned || self.transaction.is_open() {
            return None;
        }
        let shard = link.server.shard_id();
        self.links.remove(index).server.close();
        self.link(shard).await.ok()
    }

    /// The statement that runs next may leave this behind in whatever server sessions it uses.
    pub(super) fn expect_residue(&mut self, residue: Residue) {
        self.residue |= residue;
        // What it has made is seen by the statements behind it, too.
        self.residue.reads_setting |= residue.settings != MadeSettings::None;
        if residue.stays() {
            self.temporary.expect_change();
        }
        if residue.keeps {
            if self.residue.reads_setting {
                // Until now they could be others as well.
                self.leave_strange_links();
            }
            self.pin();
        }
    }

    /// Notes on a connection what the statement may leave there.
    fn note_residue(&mut self, index: usize) {
        let residue = self.residue;
        let session = self.card.id;
        let server = &mut self.links[index].server;
        if server.doubtful {
            server.end_doubtful();
        }
        if residue == Residue::NONE {
            return;
        }
        server.residue |= residue;
        server.doubtful = residue.stays();
        if residue.reads_sequence && server.sequence_owner != SequenceOwner::Session(session) {
            // What others have drawn here is not what the code may see.
            server.query("DISCARD SEQUENCES", Answer::Hidden);
            server.sequence_owner = SequenceOwner::Nobody;
        }
        if residue.moves_sequence {
            server.move_sequence(session);
        }
    }

    /// The transaction has seen tables of this shard.
    pub(super) fn is_used(&self, shard: ShardId) -> bool {
        let mut links = self.links.iter();
        links.any(|link| link.begun && link.used && link.server.shard_id() == shard)
    }

    /// The pool of a shard; looked up once.
    fn pool(&mut self, shard: ShardId) -> Outcome<Arc<Pool>> {
        let known = self.pools.iter().find(|(id, _)| *id == shard);
        if let Some((_, pool)) = known {
            return Ok(pool.clone());
        }
        let pool = self
            .thread
            .pools
            .pool(self.process.shard(shard)?, &self.user);
        self.pools.push((shard, pool.clone()));
        Ok(pool)
    }

    pub(super) async fn borrow(&mut self, shard: ShardId) -> Outcome<usize> {
        let pool = self.pool(shard)?;
        let server = match pool.take_idle() {
            Some(server) => server,
            None => self.wait_for_server(&pool).await?,
        };
        server.key.session.store(self.card.pid, Ordering::Relaxed);
        lock(&self.card.activity).keys.push(server.key.clone());
        self.links.push(Link {
            server,
            begun: false,
            wrote: false,
            used: false,
            pinned: self.pinned,
        });
        Ok(self.links.len() - 1)
    }

    /// A new connection, or the next one that comes back: unless the client leaves before, or its
    /// statement's time is over.
    async fn wait_for_server(&mut self, pool: &Arc<Pool>) -> Outcome<Lease> {
        let card = self.card.clone();
        let (settings, began) = (&self.settings.map, self.began);
        // The wait for a place counts as a part of the statement.
        let late = async {
            let limit = settings.get("statement_timeout").and_then(guc::duration);
            over(limit.map(|limit| limit.saturating_sub(began.elapsed()))).await;
        };
        // Dropping any of them is safe: an unfinished checkout leaves the queue or closes the
        // half-open connection, and its slot goes back.
        tokio::select! {
            biased;
            server = pool.checkout() => Ok(server?),
            gone = self.client.gone() => Err(gone),
            () = card.cancelled.notified() => Err(cancelled()),
            () = late => Err(timed_out()),
        }
    }

    /// Makes the connection's settings those of the session. The client has seen their effects
    /// before, so it sees nothing now.
    async fn apply_settings(&mut self, index: usize, wanted: &SettingMap) -> Outcome {
        let server = &mut self.links[index].server;
        let difference = server.settings.difference(wanted);
        server.settings = wanted.clone();
        if difference.is_empty() {
            return Ok(());
        }
        server.query(&difference, Answer::Hidden);
        relay::exchange(&mut self.client, server).await?;
        self.hidden_error(index)
    }

    /// Queues BEGIN, and what the transaction has set and marked before this shard joined.
    async fn queue_begin(&mut self, index: usize) -> Outcome {
        self.take_turn();
        let shard = self.links[index].server.shard_id();
        self.transaction.note_joined(shard);
        let home = shard == self.home();
        let statements = self.transaction.begin_statements(home);
        let settings = self.settings.map.clone();
        let link = &mut self.links[index];
        link.begun = true;
        link.used = true;
        link.server.settings = settings;
        link.server.query(&statements, Answer::Hidden);
        if self.transaction.begins_plainly() {
            // A plain BEGIN cannot fail on a live connection: it travels with the statement.
            return Ok(());
        }
        relay::exchange(&mut self.client, &mut link.server).await?;
        self.hidden_error(index)
    }

    /// An error in an answer that the client did not ask for fails the statement.
    pub(super) fn hidden_error(&mut self, index: usize) -> Outcome {
        let server = &mut self.links[index].server;
        match server.hidden_error.take() {
            None => Ok(()),
            Some(frame) => {
                // Settings may be half applied; do not lend this connection again.
                server.status = b'E';
                Err(Failure::Shard(frame))
            }
        }
    }

    /// Notes what a statement leaves behind in the server session it is about to run in.
    pub(super) fn note_effects(&mut self, index: usize, effects: SessionEffects) -> Outcome {
        let session = self.card.id;
        // What a read-only transaction may change is in no table that lasts.
        let writes = (effects.writes || effects.changes_catalog) && !self.transaction.read_only;
        if writes && !self.links[index].wrote {
            let shard = self.links[index].server.shard_id();
            self.allow_second_writer(shard)?;
        }
        let link = &mut self.links[index];
        link.wrote |= writes;
        let owner = link.server.sequence_owner;
        let alone = owner == SequenceOwner::Nobody || owner == SequenceOwner::Session(session);
        let known = self.memory.is_on(&link.server.key, owner, session)
            || self.memory.never_on_a_server() && self.pinned && alone;
        // Without a transaction that has drawn, it would be luck to meet the same connection.
        let drew = link.begun && self.transaction.drew;
        if effects.reads_sequence && !(known && (self.pinned || drew)) {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "currval and lastval need the server session that called nextval",
            )
            .detail("Server connections are shared between transactions.")
            .hint("Call them in the same transaction as nextval, or use INSERT ... RETURNING.")
            .into());
        }
        if effects.moves_sequence {
            link.server.move_sequence(session);
            self.memory.moved_on(&link.server.key);
            self.transaction.drew |= self.transaction.is_open();
        }
        if effects.pins {
            self.pin();
        }
        Ok(())
    }

    /// The session keeps its connections from now on.
    fn pin(&mut self) {
        if !self.pinned {
            self.pinned = true;
            self.links.iter_mut().for_each(|link| link.pinned = true);
            tracing::debug!(
                session = self.card.id,
                "session keeps its server connections"
            );
        }
    }

    /// The session no longer needs its own connections.
    pub(super) fn unpin(&mut self) {
        self.pinned = false;
        self.links.iter_mut().for_each(|link| link.pinned = false);
    }

    /// Where code may have left something in a server session, looks whether it did: then the
    /// session keeps its connections, as it does after a statement that says so itself.
    async fn look_for_residue(&mut self) {
        for index in 0..self.links.len() {
            let server = &mut self.links[index].server;
            // What is in the middle of something is closed anyway.
            if !self.pinned && server.residue.stays() && server.is_idle() {
                let text = look(&server.settings, &self.user.name);
                server.query(&text, Answer::Shown);
                let mut left = false;
                let looked = relay::collect(&mut self.client, server, |_, frame| {
                    left |= frame.tag == b'D' && frame.body().ends_with(b"t");
                    Ok(())
                });
                match looked.await {
                    Ok(()) if !left => {}
                    // Where one cannot look, something may be.
                    Ok(()) | Err(Failure::Shard(_)) => self.pin(),
                    // The connection is lost, and with it what was left there.
                    Err(_) => {}
                }
            }
        }
    }

    /// Gives connections back, unless a transaction is open or the session is pinned.
    pub(super) async fn release_links(&mut self) {
        if self.links.is_empty() || self.transaction.is_open() {
            return;
        }
        self.residue = Residue::NONE;
        if !self.pinned && self.links.iter().any(|link| link.server.residue.stays()) {
            Box::pin(self.look_for_residue()).await;
        }
        let tainted = {
            let mut activity = lock(&self.card.activity);
            let tainted = std::mem::take(&mut activity.tainted);
            activity.keys.clear();
            tainted
        };
        if !self.pinned {
            for link in self.links.drain(..) {
                if tainted {
                    // A cancel request may still be on its way to this connection.
                    link.server.close();
                } else if link.server.residue.stays() {
                    self.process.tasks.spawn(pool::clean(link.server));
                }
            }
            return;
        }
        let mut activity = lock(&self.card.activity);
        for link in &mut self.links {
            link.begun = false;
            link.wrote = false;
            activity.keys.push(link.server.key.clone());
        }
    }

    /// A pinned session waits for its client and for its connections at once: notifications come
    /// without being asked for.
    pub(super) async fn wait_with_links(&mut self, stop: &CancellationToken) -> Outcome {
        let mut shards: Vec<_> = self.links.iter_mut().map(|link| &mut link.server).collect();
        let any_shard = async {
            let fills = shards.iter_mut().map(|server| Box::pin(server.listen()));
            let mut fills: Vec<_> = fills.collect();
            std::future::poll_fn(|context| {
                for (index, fill) in fills.iter_mut().enumerate() {
                    if let std::task::Poll::Ready(filled) = fill.as_mut().poll(context) {
                        return std::task::Poll::Ready((index, filled));
                    }
                }
                std::task::Poll::Pending
            })
            .await
        };
        // All three are safe to drop: bytes are in buffers or in the kernel.
        let arrived = tokio::select! {
            biased;
            filled = self.client.wire.fill() => match filled {
                Ok(count) if count > 0 => None,
                _ => return Err(Failure::ClientGone),
            },
            () = stop.cancelled() => return Err(shutting_down()),
            (index, filled) = any_shard => Some((index, matches!(filled, Ok(count) if count > 0))),
        };
        match arrived {
            None => Ok(()),
            Some((index, true)) => {
                relay::exchange(&mut self.client, &mut self.links[index].server).await?;
                Ok(())
            }
            Some((index, false)) => {
                // What pinned the session (temporary tables, locks, LISTEN) is lost with it.
                let link = self.links.remove(index);
                let report = link.server.shard.broken("the server closed the connection");
                link.server.close();
                Err(report.into())
            }
        }
    }
}

/// Asks a server session whether it has anything that the session's own settings do not explain.
/// What cannot be seen from outside (settings that no module has defined) is not in the answer, and
/// neither are statements with names like ours, which the reset drops.
fn look(settings: &SettingMap, user: &str) -> String {
    let role = match settings.get("role") {
        Some(_) => "",
        None => "or pg_catalog.current_setting('role') <> 'none'",
    };
    let names: Vec<String> = settings.names().map(guc::quote_literal).collect();
    format!(
        "select session_user <> {user} {role}
        or exists (select from pg_catalog.pg_settings where source = 'session'
            and pg_catalog.lower(name) <> all (array[{names}]::text[]))
        or exists (select from pg_catalog.pg_listening_channels())
        or exists (select from pg_catalog.pg_cursors where is_holdable)
        or exists (select from pg_catalog.pg_prepared_statements where name !~ '^a67_')
        or case when pg_catalog.pg_my_temp_schema() <> 0 then
            exists (select from pg_catalog.pg_class
                where relnamespace = pg_catalog.pg_my_temp_schema())
            or exists (select from pg_catalog.pg_proc
                where pronamespace = pg_catalog.pg_my_temp_schema())
            or exists (select from pg_catalog.pg_type
                where typnamespace = pg_catalog.pg_my_temp_schema())
        end is true
        or exists (select from pg_catalog.pg_locks
            where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid())",
        user = guc::quote_literal(user),
        names = names.join(", "),
    )
}

pub fn cancelled() -> Failure {
    Report::error(
        sqlstate::QUERY_CANCELED,
        "canceling statement due to user request",
    )
    .into()
}
