//! Statements wait while a table they name changes its placement, and a change of placement waits
//! for the statements that are under way. See [`crate::gate`].

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use automator67_planner::{
    catalog::{Catalog, QualifiedName},
    names,
};

use super::{Session, links::cancelled};
use crate::{
    error::{Outcome, Report, sqlstate},
    guc,
    neighbours::Unclosed,
    process::lock,
    store,
};

/// How long a statement waits for a table that moves.
const STATEMENT_WAIT: Duration = Duration::from_secs(60);
/// How long a move waits for statements, and then for locks.
const MOVE_WAIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

impl Session {
    /// Before statements that name something run: true if their plans, made with `catalog`, are
    /// still right. Otherwise they are planned anew, and enter again.
    pub(super) async fn enter(&mut self, names: u64, catalog: &Arc<Catalog>) -> Outcome<bool> {
        if names == 0 {
            return Ok(true);
        }
        self.card.names.store(names, SeqCst);
        if self
            .process
            .gate
            .bars(self.card.id, names, self.transaction.touched)
        {
            self.leave_gate();
            Box::pin(self.wait_at_gate(names)).await?;
            return Ok(false);
        }
        if self.transaction.is_open() {
            self.transaction.touched |= names;
        }
        Ok(Arc::ptr_eq(&self.catalog(), catalog))
    }

    /// No statement is under way.
    pub(super) fn leave_gate(&self) {
        self.card.names.store(0, SeqCst);
    }

    async fn wait_at_gate(&mut self, names: u64) -> Outcome {
        lock(&self.card.activity).state = "waiting";
        let (process, card) = (self.process.clone(), self.card.clone());
        let opened = process.gate.wait(card.id, names, self.transaction.touched);
        tokio::select! {
            biased;
            opened = tokio::time::timeout(STATEMENT_WAIT, opened) => opened.map_err(|_| {
                Report::error(sqlstate::LOCK_NOT_AVAILABLE, "a table of this statement is being moved")
                    .hint("Try again when the other session has ended its transaction.")
                    .into()
            }),
            gone = self.client.gone() => Err(gone),
            () = card.cancelled.notified() => Err(match lock(&card.deadlock).take() {
                Some(detail) => Report::error(sqlstate::DEADLOCK_DETECTED, "deadlock detected")
                    .detail(detail)
                    .hint("Repeat the transaction.")
                    .into(),
                None => cancelled(),
            }),
        }
    }

    /// Keeps statements on a table, and on views that read it, out until this transaction ends;
    /// ends when none is under way.
    pub(super) async fn close_gate(&mut self, table: &QualifiedName) -> Outcome {
        let tables = self.names_for(table).await?;
        let barrier = self.process.gate.close(self.card.id, tables.clone());
        self.transaction.barriers.push(barrier);
        let deadline = Instant::now() + MOVE_WAIT;
        let own = self.card.id;
        for card in self.process.sessions().iter().filter(|card| card.id != own) {
            let busy = |table: &u64| names::may_name(card.names.load(SeqCst), *table);
            while tables.iter().any(busy) {
                if Instant::now() > deadline {
                    return Err(in_use(table));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        let closed = self.process.neighbours.close(tables).await;
        let far = closed.map_err(|cause| unclosed(table, cause))?;
        self.transaction.far.extend(far);
        Ok(())
    }

    /// Statements of another proxy that wait for the table's lock were planned with its rows where
    /// they are now: they would read, or write, a part of them.
    pub(super) async fn refuse_beside_others(&mut self) -> Outcome {
        let followers = Box::pin(store::followers(self.process.home())).await;
        let home = self.process.home();
        if followers.map_err(|error| home.broken(&error.to_string()))? <= 1 {
            return Ok(());
        }
        Err(Report::error(
            sqlstate::OBJECT_IN_USE,
            "rows of a table cannot be moved while another proxy runs",
        )
        .detail("Only statements of this proxy are kept away from the table meanwhile.")
        .hint("Stop the other proxies, move the rows, and start them again.")
        .into())
    }

    /// Locks a table on every shard, or gives up before others have waited too long.
    pub(super) async fn lock_everywhere(&mut self, name: &str, mode: &str) -> Outcome {
        let limit = MOVE_WAIT.as_millis();
        self.everywhere(&format!("SET LOCAL lock_timeout TO {limit}"))
            .await?;
        let lock = format!("LOCK TABLE {name} IN {mode} MODE");
        self.run_hidden(self.home(), &lock).await?;
        self.run_elsewhere(&lock).await?;
        self.everywhere("SET LOCAL lock_timeout TO DEFAULT").await
    }

    async fn names_for(&mut self, table: &QualifiedName) -> Outcome<Vec<u64>> {
        let name = format!(
            "{}.{}",
            guc::quote_identifier(&table.schema),
            guc::quote_identifier(&table.name)
        );
        let text = format!(
            "with recursive reader(oid) as (
                 select {}::regclass::oid
                 union
                 select r.ev_class from reader
                 join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = reader.oid
                     and d.classid = 'pg_rewrite'::regclass
                 join pg_rewrite r on r.oid = d.objid)
             select c.relname from pg_class c join reader using (oid)",
            guc::quote_literal(&name)
        );
        let rows = self.query_rows(self.home(), &text).await?;
        let names = rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten());
        Ok(names.map(|name| names::bits(&name)).collect())
    }
}

fn unclosed(table: &QualifiedName, cause: Unclosed) -> crate::error::Failure {
    match cause {
        Unclosed::Busy => in_use(table),
        Unclosed::Lost => Report::error(
            sqlstate::CONNECTION_FAILURE,
            "other proxies cannot be told of the change: there is no connection to the home shard",
        )
        .hint("Try again.")
        .into(),
    }
}

fn in_use(table: &QualifiedName) -> crate::error::Failure {
    Report::error(
        sqlstate::LOCK_NOT_AVAILABLE,
        format!(
            "table \"{}\" is in use by statements that do not end",
            table.name
        ),
    )
    .detail(format!("Waited {} s for them.", MOVE_WAIT.as_secs()))
    .hint("Look at automator67.sessions, and try again.")
    .into()
}
