//! EXPLAIN of the scatter and merge tiers. ANALYZE runs the statement as it would run without, and
//! throws its rows away.

use std::{sync::Arc, time::Instant};

use automator67_planner::{
    catalog::ShardId,
    plan::{Combine, Explain, FinalPiece, Plan, Rows, Scatter, SortColumn},
};

use super::{
    milliseconds, options, property, put_actual, readable, refuse_format,
    tree::{self, Native, Node, Value},
};
use crate::{
    error::{Failure, Outcome},
    frame::HEADER_BYTES,
    message,
    server::relay::Captured,
    session::{
        Session,
        merge::{Last, RECORDS, count_text, last_statement},
        planning::Request,
        scatter::{Learned, key_columns, sort_keys, without_position},
    },
    telemetry::Tier,
};

/// How a statement is going to run, as far as that is known before it does.
struct Outlook {
    tier: Tier,
    /// What each shard gets.
    text: String,
    /// What the home shard gets at the end.
    last: Option<String>,
    /// The columns' names, where they are known.
    columns: Option<Vec<String>>,
}

/// Which of the plan's ways is taken, and the rows that its moves are expected to have.
#[derive(Debug, Default)]
pub struct Chosen {
    /// 0 is the plan's own, n the n-th of its others.
    way: usize,
    /// Of each move.
    pub rows: Vec<f64>,
}

impl Chosen {
    fn new(way: usize, rows: &[f64]) -> Chosen {
        Chosen {
            way,
            rows: rows.to_vec(),
        }
    }

    fn of<'p>(&self, scatter: &'p Scatter) -> &'p Scatter {
        let other = self.way.checked_sub(1);
        other
            .and_then(|other| scatter.others.get(other))
            .unwrap_or(scatter)
    }
}

/// How the statement ran.
struct Run {
    tier: Tier,
    rows: u64,
    milliseconds: f64,
}

impl Session {
    /// Explains a SELECT of which every shard does its part.
    pub(super) async fn explain_scatter(
        &mut self,
        explain: &Explain,
        scatter: &Scatter,
        inner: &Request<'_>,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        if scatter.moves.is_empty() {
            let shards = self.shard_set(&scatter.shards, inner).await?;
            if let [shard] = shards.as_slice() {
                return self.explain_single(explain, *shard, request).await;
            }
        }
        refuse_format(explain)?;
        // What is wrong with the client's own text is said of that.
        self.check_on_home(request).await?;
        self.check_views_on_home(inner).await?;
        if !scatter.moves.is_empty() && self.reads_only() {
            return self.explain_as_gather(explain, inner, request).await;
        }
        let mut chosen = Chosen::default();
        if !scatter.moves.is_empty() {
            let (_, choice) = self.choose(scatter, inner).await?;
            chosen = Chosen::new(choice.way, &choice.rows);
        }
        let way = chosen.of(scatter);
        let shards = self.shard_set(&way.shards, inner).await?;
        let Some(mut outlook) = self.outlook(way, inner).await? else {
            return self.explain_as_gather(explain, inner, request).await;
        };
        let mut scans = Vec::with_capacity(shards.len());
        for shard in &shards {
            let native = self
                .scan_plan(explain, way, *shard, &outlook, inner)
                .await?;
            scans.push(self.scan(*shard, &outlook.text, native));
        }
        let run = match explain.analyze {
            true => Some(self.run_unseen(scatter, inner).await?),
            false => None,
        };
        let tier = run.as_ref().map_or(outlook.tier, |run| run.tier);
        if tier == Tier::Gather {
            // The types of what came from moved relations did not allow to merge it.
            return self.explain_as_gather(explain, inner, request).await;
        }
        if run.is_some() && !self.work.moved.is_empty() {
            chosen = Chosen::new(self.work.way, &self.work.estimated);
        }
        let way = chosen.of(scatter);
        if run.is_some() {
            self.look_back(way, &mut outlook, inner).await?;
        }
        let mut root = self.root(tier, &shards, scatter, &chosen);
        put_order(&mut root, way, &outlook, inner)?;
        let moves = self.moves(way, &chosen, run.is_some(), inner).await?;
        root.children.extend(moves);
        if let Some(run) = &run {
            self.put_work(&mut root, &mut scans, &shards, run);
        }
        match self.last_node(way, &outlook, tier, run.is_some()) {
            None => root.children.extend(scans),
            Some(mut last) => {
                last.children = scans;
                root.children.push(last);
            }
        }
        let total = run.map(|run| property("Total Time", Value::Milliseconds(run.milliseconds)));
        let footer: Vec<_> = total.into_iter().collect();
        self.answer(explain, request, &root, &footer)?;
        Ok(tier)
    }

    /// The executor would not take this way: see [`Session::scatter`].
    async fn explain_as_gather(
        &mut self,
        explain: &Explain,
        inner: &Request<'_>,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let planned = self.plan_for_gather(inner).await?;
        if matches!(planned.plan, Plan::Scatter(_)) {
            return Err(super::not_explained());
        }
        self.explain_planned(explain, &planned, request).await
    }

    /// What the executor is going to do. `None`: it will have to gather.
    async fn outlook(&mut self, way: &Scatter, inner: &Request<'_>) -> Outcome<Option<Outlook>> {
        let text = self.shard_text(way, inner).await?;
        if !way.moves.is_empty() {
            // Tables that are not there yet tell no types.
            let last = match &way.combine {
                Combine::Rows(_) => None,
                Combine::Final(pieces) => Some(last_readable(pieces, inner)),
            };
            return Ok(Some(Outlook {
                tier: Tier::Merge,
                text,
                last,
                columns: None,
            }));
        }
        let learned = self.learned(way, &text, inner).await?;
        let columns = message::column_names(&learned.description[HEADER_BYTES..]);
        if let Combine::Rows(rows) = &way.combine
            && let Some(text) = self.streamed(rows, &text, &learned, inner).await?
        {
            return Ok(Some(Outlook {
                tier: Tier::Scatter,
                text,
                last: None,
                columns,
            }));
        }
        Ok(self
            .last(way, &text, &learned, inner)
            .await?
            .map(|last| Outlook {
                tier: Tier::Merge,
                text,
                last: Some(last),
                columns,
            }))
    }

    /// After a run the types of moved relations, and of what is computed from them, are known.
    async fn look_back(
        &mut self,
        way: &Scatter,
        outlook: &mut Outlook,
        inner: &Request<'_>,
    ) -> Outcome {
        if way.moves.is_empty() || way.memo.0.get().is_none() {
            return Ok(());
        }
        outlook.text = self.shard_text(way, inner).await?;
        let learned = self.learned(way, &outlook.text, inner).await?;
        outlook.columns = message::column_names(&learned.description[HEADER_BYTES..]);
        outlook.last = None;
        if self.work.last.is_some() {
            outlook.last = self.last(way, &outlook.text, &learned, inner).await?;
        }
        Ok(())
    }

    /// What shards get whose rows the proxy itself puts in order.
    async fn streamed(
        &mut self,
        rows: &Rows,
        text: &str,
        learned: &Arc<Learned>,
        inner: &Request<'_>,
    ) -> Outcome<Option<String>> {
        let bytewise = self.bytewise(learned, rows, text, inner).await?;
        if rows.distinct.is_some() || sort_keys(rows, learned, &bytewise).is_none() {
            return Ok(None);
        }
        let count = learned.columns.len();
        let visible = count.saturating_sub(rows.hidden);
        Ok(Some(key_columns(rows, visible, text, count).0.text))
    }

    /// The last statement on the home shard, with `parts` in the place of partial results.
    async fn last(
        &mut self,
        way: &Scatter,
        text: &str,
        learned: &Arc<Learned>,
        inner: &Request<'_>,
    ) -> Outcome<Option<String>> {
        if learned.columns.iter().any(|(oid, _)| RECORDS.contains(oid)) {
            return Ok(None);
        }
        let pieces = match &way.combine {
            Combine::Rows(rows) => Some(self.ordered_statement(rows, learned, inner)?),
            Combine::Final(pieces) => {
                let names = self.type_names(learned, text, inner).await?;
                last_statement(pieces, &names, inner)
            }
        };
        Ok(pieces.map(|pieces| {
            pieces
                .iter()
                .map(|piece| match piece {
                    Last::Text(text) => text.as_str(),
                    Last::Rows => PARTS,
                    Last::Now => "now()",
                })
                .collect()
        }))
    }

    /// How a shard would run its statement. Tables that are to be moved there are not there yet.
    async fn scan_plan(
        &mut self,
        explain: &Explain,
        way: &Scatter,
        shard: ShardId,
        outlook: &Outlook,
        inner: &Request<'_>,
    ) -> Outcome<Native> {
        if !way.moves.is_empty() {
            return Ok(Native::None);
        }
        let prefix = match explain.analyze {
            true => options::without_analyze(&explain.prefix),
            false => explain.prefix.clone(),
        };
        let text = format!("{prefix}{}", outlook.text);
        self.native_plan(explain, shard, &text, inner).await
    }

    fn scan(&self, shard: ShardId, text: &str, native: Native) -> Node {
        let name = self.shard_name(shard);
        let mut node = Node::new("Shard Scan", format!("Shard Scan on {name}"))
            .hidden("Shard", Value::Text(name));
        if let Some(rows) = tree::estimated_rows(&native) {
            node.add_inline("Estimated Rows", "estimated rows", Value::Count(rows));
        }
        node.add("SQL", Value::Text(text.to_owned()));
        node.native = native;
        node
    }

    fn root(&self, tier: Tier, shards: &[ShardId], scatter: &Scatter, chosen: &Chosen) -> Node {
        let word = match tier {
            Tier::Scatter => "Scatter",
            _ => "Merge",
        };
        let names = self.names_of(shards);
        let mut root = Node::new(
            format!("Automator67 {word}"),
            format!("{word} on {}", names.join(", ")),
        )
        .hidden("Shards", Value::List(names))
        .with("Reason", Value::Text(scatter.reason.clone()));
        if !scatter.others.is_empty() {
            let way = format!("{} of {}", chosen.way + 1, scatter.others.len() + 1);
            root.add("Way", Value::Text(way));
        }
        root
    }

    /// The statement that makes the answer of partial results.
    fn last_node(
        &self,
        way: &Scatter,
        outlook: &Outlook,
        tier: Tier,
        analyzed: bool,
    ) -> Option<Node> {
        if tier != Tier::Merge {
            return None;
        }
        let ran = analyzed && self.work.last.is_some();
        let distinct = matches!(&way.combine, Combine::Rows(rows) if rows.distinct.is_some());
        if outlook.last.is_none() && !ran && !distinct {
            return None;
        }
        let home = self.shard_name(self.home());
        let mut node =
            Node::new("Final", format!("Final on {home}")).hidden("Shard", Value::Text(home));
        if ran {
            let time = Value::Milliseconds(self.work.last_milliseconds);
            node.add_inline("Actual Total Time", "time", time);
            let held = match self.work.table {
                true => "a temporary table",
                false => "parameters",
            };
            node.add("Parts In", Value::Text(held.to_owned()));
        }
        if let Some(text) = &outlook.last {
            node.add("SQL", Value::Text(text.trim_end().to_owned()));
        }
        Some(node)
    }

    /// What was done, with ANALYZE.
    fn put_work(&self, root: &mut Node, scans: &mut [Node], shards: &[ShardId], run: &Run) {
        root.add_inline("Actual Rows", "actual rows", Value::Count(run.rows));
        let time = Value::Milliseconds(run.milliseconds);
        root.add_inline("Actual Total Time", "time", time);
        for (scan, shard) in scans.iter_mut().zip(shards) {
            let part = self.work.parts.iter().find(|part| part.shard == *shard);
            if let Some(part) = part {
                put_actual(scan, part.rows, part.bytes, part.milliseconds);
            }
        }
        if run.tier != Tier::Merge {
            return;
        }
        let moved: u64 = self.work.moved.iter().map(|one| one.bytes).sum();
        let spilled: u64 = self.work.moved.iter().map(|one| one.spilled).sum();
        let held = self.work.last.is_some() && !self.work.table;
        let parts: u64 = match held {
            true => self.work.parts.iter().map(|part| part.bytes).sum(),
            false => 0,
        };
        let memory = moved.saturating_sub(spilled) + parts;
        root.add("Memory Bytes", Value::Count(memory));
        root.add("Spilled Bytes", Value::Count(spilled));
    }

    /// Runs a statement whose rows nobody wants.
    async fn run_unseen(&mut self, scatter: &Scatter, inner: &Request<'_>) -> Outcome<Run> {
        let started = Instant::now();
        let before = std::mem::take(self.client.output());
        let unseen = Captured {
            full: Some(Box::new(|rows| {
                rows.clear();
                Ok(())
            })),
            ..Captured::default()
        };
        let outer = self.client.captured.replace(Box::new(unseen));
        let result = Box::pin(self.scatter(scatter, inner)).await;
        let rest = self.client.flush().await;
        let unseen = std::mem::replace(&mut self.client.captured, outer).unwrap_or_default();
        *self.client.output() = before;
        self.client.output().extend_from_slice(&unseen.notices);
        if let (Err(Failure::Told(_)), Some(error)) = (&result, unseen.error) {
            return Err(without_position(Failure::Shard(error)));
        }
        let tier = result?;
        rest?;
        Ok(Run {
            tier,
            rows: unseen.count,
            milliseconds: milliseconds(started),
        })
    }
}

/// What partial results are called.
const PARTS: &str = "parts a67";

/// Sort keys, limit and offset that are the proxy's work.
fn put_order(root: &mut Node, way: &Scatter, outlook: &Outlook, inner: &Request<'_>) -> Outcome {
    let Combine::Rows(rows) = &way.combine else {
        return Ok(());
    };
    if outlook.last.is_some() {
        return Ok(());
    }
    if !rows.order.is_empty() {
        let keys = rows.order.iter().map(|sort| sort_key(sort, rows, outlook));
        root.add("Sort Key", Value::List(keys.collect()));
    }
    if let Some(count) = &rows.count {
        let ties = if rows.ties { " with ties" } else { "" };
        let text = format!("{}{ties}", count_text(count, inner)?);
        root.add("Limit", Value::Text(text));
    }
    if let Some(offset) = &rows.offset {
        root.add("Offset", Value::Text(count_text(offset, inner)?));
    }
    Ok(())
}

fn sort_key(sort: &SortColumn, rows: &Rows, outlook: &Outlook) -> String {
    use automator67_planner::plan::ColumnAt;
    let name = |at: usize| outlook.columns.as_ref()?.get(at).cloned();
    let mut text = match sort.column {
        ColumnAt::Visible(at) => name(at).unwrap_or_else(|| format!("column {}", at + 1)),
        ColumnAt::Hidden(at) => {
            let visible = outlook.columns.as_ref().map_or(0, Vec::len);
            name(visible.saturating_sub(rows.hidden) + at)
                .unwrap_or_else(|| format!("hidden column {}", at + 1))
        }
    };
    if sort.descending {
        text.push_str(" DESC");
    }
    if sort.nulls_first != sort.descending {
        let place = if sort.nulls_first { "FIRST" } else { "LAST" };
        text.push_str(&format!(" NULLS {place}"));
    }
    text
}

/// The last statement before the columns' types are known.
fn last_readable(pieces: &[FinalPiece], inner: &Request<'_>) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            FinalPiece::Piece(piece) => {
                text.push_str(&readable(std::slice::from_ref(piece), inner));
            }
            FinalPiece::Rows => text.push_str(PARTS),
            FinalPiece::Type(at) => text.push_str(&format!("typeof(c{})", at + 1)),
            FinalPiece::Average { sum, count } => {
                let (sum, count) = (sum + 1, count + 1);
                text.push_str(&format!("(sum(a67.c{sum}) / sum(a67.c{count}))"));
            }
        }
    }
    text
}
