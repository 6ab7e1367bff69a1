//! Statements of one shard each, in a batch over several shards: each is sent before the answers of
//! those before it have come. A round trip for each of them would make up most of the time.
//!
//! Answers go to the client in the order of its statements. After an error nothing more is passed on:
//! the batch is one transaction, so what ran behind the error is rolled back with it. A statement runs
//! on one shard while one before it may still run on another only if all of them do nothing but read:
//! those hold nobody up, and have nothing that could be rolled back. Statements that write go ahead of
//! answers on one shard only, which keeps their order.

use std::{sync::Arc, time::Instant};

use automator67_planner::catalog::{Residue, ShardId};

use super::{
    super::{Session, portals::Progress, statements::Statement},
    BatchStep,
};
use crate::{
    error::{Failure, Outcome},
    failpoint,
    message::{Bind, Named},
    server::{Answer, Server, relay},
    telemetry::Tier,
    types,
};

/// What is sent to one shard ahead of its answers; the rest is sent after those. It fits into what
/// sockets hold, so a shard that waits for us to read never keeps us waiting to write.
const AHEAD_BYTES_MAX: usize = 16 << 10;

/// Bind, perhaps Describe, and Execute of the unnamed portal.
struct Ahead {
    bind: Arc<Bind>,
    statement: Arc<Statement>,
    shard: ShardId,
    describes: bool,
}

impl Ahead {
    /// Messages of the client.
    fn steps(&self) -> usize {
        2 + usize::from(self.describes)
    }
}

/// A shard that statements were sent to.
struct Asked {
    index: usize,
    /// Of prepared statements, before these.
    uses: u64,
}

/// Where the answers to a statement end.
struct Due {
    index: usize,
    /// What is queued up to there.
    queued: usize,
}

impl Session {
    /// Runs the statements that the steps begin with, as many as can be sent ahead. Returns how many
    /// steps they are; 0: something else must be done first.
    pub(super) async fn send_ahead(&mut self, steps: &[BatchStep]) -> Outcome<usize> {
        let run = self.ahead(steps).await;
        let Some(first) = run.first() else {
            return Ok(0);
        };
        let names = |names, one: &Ahead| names | one.statement.prepared.names();
        let names = run.iter().fold(0, names);
        let catalog = first.statement.prepared.catalog.clone();
        if !self.enter(names, &catalog).await? {
            return Ok(0);
        }
        self.begin_implicit();
        self.transaction.touched |= names;
        let started = Instant::now();
        self.residue = Residue::NONE;
        let (asked, due, stopped) = self.queue_ahead(&run).await;
        let sent = &run[..due.len()];
        if let Err(failure) = self.pass_answers(&asked, &due).await {
            return Err(self.give_up(&asked, failure).await);
        }
        for one in sent {
            let kind = one.statement.prepared.statements.first();
            let kind = kind.map_or("other", |planned| planned.kind);
            self.process
                .telemetry
                .statement(Tier::Single, kind, started.elapsed());
        }
        if let Some(last) = sent.last() {
            self.put_portal(last.statement.clone(), last.bind.clone());
            self.set_progress("", Progress::Done);
        }
        let statements: Vec<_> = sent.iter().map(|one| one.statement.clone()).collect();
        self.note_forwarded(&statements);
        match stopped {
            // What came before it has its answers.
            Some(failure) => Err(failure),
            None => Ok(sent.iter().map(Ahead::steps).sum()),
        }
    }

    /// The statements that the steps begin with, up to one that cannot be sent ahead.
    async fn ahead(&mut self, steps: &[BatchStep]) -> Vec<Ahead> {
        let mut run: Vec<Ahead> = Vec::new();
        if self.transaction.is_failed() {
            return run;
        }
        let mut rest = steps;
        let (mut several, mut only_reads) = (false, true);
        while let Some((bind, describes, behind)) = unnamed(rest) {
            // Its error comes when its turn has come.
            let Ok(statement) = self.statement_now(&bind.statement).await else {
                break;
            };
            let Some(shard) = self.forward_shard(&statement, bind) else {
                break;
            };
            let [planned] = statement.prepared.statements.as_slice() else {
                break;
            };
            let wanted = planned.parameters.max(statement.types.len());
            if planned.kind == "copy"
                || planned.lookup.is_some()
                || planned.session.residue != Residue::NONE
                || bind.parameter_count() != wanted
            {
                break;
            }
            if let Some(first) = run.first() {
                several |= first.shard != shard;
                if first.shard != shard && planned.session.reads_clock {
                    break;
                }
                let catalog = &first.statement.prepared.catalog;
                if !Arc::ptr_eq(catalog, &statement.prepared.catalog) {
                    break;
                }
            }
            only_reads &= planned.session.only_reads;
            if several && !only_reads {
                break;
            }
            run.push(Ahead {
                bind: bind.clone(),
                statement,
                shard,
                describes,
            });
            rest = behind;
        }
        run
    }

    /// Queues statements for their shards. A failure ends the queue: it comes behind the answers to
    /// what was queued before it.
    async fn queue_ahead(&mut self, run: &[Ahead]) -> (Vec<Asked>, Vec<Due>, Option<Failure>) {
        let mut asked: Vec<Asked> = Vec::new();
        let mut due = Vec::with_capacity(run.len());
        let mut stopped = None;
        for one in run {
            let index = match self.link_ahead(one).await {
                Ok(index) => index,
                Err(failure) => {
                    stopped = Some(failure);
                    break;
                }
            };
            let server = &mut self.links[index].server;
            let first = !asked.iter().any(|asked| asked.index == index);
            let bytes = one.statement.text.len() * usize::from(!is_known(server, one));
            let bytes = server.queued_bytes() + bytes + one.bind.rest.len();
            if !first && bytes > AHEAD_BYTES_MAX {
                break;
            }
            if first {
                server.shape = None;
                let uses = server.uses();
                asked.push(Asked { index, uses });
            }
            let name = self.on_server(index, &one.bind.statement, &one.statement);
            let server = &mut self.links[index].server;
            server.bind("", name, &one.bind.rest, Answer::Shown);
            if one.describes {
                server.describe_portal("", Answer::Shown);
            }
            let named = !one.bind.statement.is_empty();
            let id = named.then_some(one.statement.id);
            server.execute("", 0, Answer::Shown, one.bind.wants_binary(), id);
            let queued = server.answers_due();
            due.push(Due { index, queued });
        }
        for asked in &asked {
            self.links[asked.index].server.sync();
        }
        (asked, due, stopped)
    }

    async fn link_ahead(&mut self, one: &Ahead) -> Outcome<usize> {
        let planned = one.statement.prepared.statements.first();
        let (names, effects) = planned.map_or((0, Default::default()), |planned| {
            (planned.names, planned.session)
        });
        let used = self.is_used(one.shard);
        let index = self.link(one.shard).await?;
        self.note_effects(index, effects)?;
        self.links[index].used = used || names != 0;
        types::learn_for_shard(&self.links[index].server.shard, &one.statement.types).await?;
        Ok(index)
    }

    /// Sends what is queued, and passes the answers on in the order of the statements.
    async fn pass_answers(&mut self, asked: &[Asked], due: &[Due]) -> Outcome {
        let mut totals = Vec::with_capacity(asked.len());
        for asked in asked {
            let server = &mut self.links[asked.index].server;
            totals.push((asked.index, server.answers_due()));
            failpoint::reach("statement.before_send", Some(server)).await;
            relay::send(server).await?;
        }
        for due in due {
            let total = totals.iter().find(|(index, _)| *index == due.index);
            let left = total.map_or(0, |(_, total)| total - due.queued);
            self.pass_answer(due.index, left).await?;
        }
        for asked in asked {
            self.pass_answer(asked.index, 0).await?;
        }
        Ok(())
    }

    async fn pass_answer(&mut self, index: usize, left: usize) -> Outcome {
        let server = &mut self.links[index].server;
        let relayed = relay::receive(&mut self.client, server, left).await?;
        self.process
            .telemetry
            .bytes_to_clients
            .increment(relayed.bytes);
        self.hidden_error(index)?;
        relayed.told()?;
        Ok(())
    }

    /// A statement has failed: the answers to those behind it are not for the client.
    async fn give_up(&mut self, asked: &[Asked], failure: Failure) -> Failure {
        if matches!(failure, Failure::ClientGone) {
            return failure;
        }
        for asked in asked {
            let server = &mut self.links[asked.index].server;
            // A connection that has broken is not lent again.
            let read = match relay::send(server).await {
                Ok(()) => relay::throw_away(&mut self.client, server).await,
                broken => broken,
            };
            let forgotten = match read {
                Ok(()) => self.forget_uncertain(asked.index, asked.uses).await,
                broken => broken,
            };
            if let Err(Failure::ClientGone) = forgotten {
                return Failure::ClientGone;
            }
        }
        failure
    }
}

/// The server has the statement under the name that Bind will use.
fn is_known(server: &mut Server, one: &Ahead) -> bool {
    if one.bind.statement.is_empty() {
        server.has_unnamed(one.statement.id)
    } else {
        server.has_prepared(one.statement.id)
    }
}

/// Bind, perhaps Describe, and Execute of the unnamed portal to its end, if the steps begin so; and
/// what comes behind.
fn unnamed(steps: &[BatchStep]) -> Option<(&Arc<Bind>, bool, &[BatchStep])> {
    let [BatchStep::Bind(bind), behind @ ..] = steps else {
        return None;
    };
    let (describes, behind) = match behind {
        [BatchStep::Describe(Named::Portal(portal)), behind @ ..] if portal.is_empty() => {
            (true, behind)
        }
        behind => (false, behind),
    };
    match behind {
        [BatchStep::Execute { portal, limit: 0 }, behind @ ..]
            if portal.is_empty() && bind.portal.is_empty() =>
        {
            Some((bind, describes, behind))
        }
        _ => None,
    }
}
