//! EXPLAIN: the tier, the shards, the SQL each gets; with ANALYZE also rows, bytes, milliseconds.
//!
//! Here are statements of one shard, gathers and writes; `explain::several` has what every shard
//! does its part of.

mod moves;
mod options;
mod several;
mod tree;

use std::time::Instant;

use automator67_planner::{
    catalog::ShardId,
    plan::{Explain, Fetch, FetchSource, Gather, Piece, Plan, Planned, ShardSet, Target},
};

use self::{
    options::Format,
    tree::{Native, Node, Property, Value},
};
use super::{
    Session,
    execute::queue,
    extended::Bound,
    gather::Moved,
    planning::{Request, Resolved},
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc, message,
    server::{Answer, relay},
    telemetry::Tier,
};

impl Session {
    /// Explains, and with ANALYZE runs, a statement.
    pub(super) async fn explain(
        &mut self,
        explain: &Explain,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let all_rows = request.bound.map(Bound::without_limit);
        let inner = Request {
            planned: &explain.plan,
            text: &explain.statement,
            catalog: request.catalog.clone(),
            bound: all_rows.as_ref(),
            ..*request
        };
        match &explain.plan.plan {
            Plan::Single(target) => {
                let shard = match target {
                    Target::Home => Some(self.home()),
                    Target::AnyCopy => Some(self.any_copy()),
                    Target::Key(route) => match self.resolve_surely(route, &inner).await? {
                        Resolved::One(shard) => Some(shard),
                        Resolved::Several(_) | Resolved::Unknown => None,
                    },
                };
                match shard {
                    Some(shard) => self.explain_single(explain, shard, request).await,
                    None => {
                        let planned = self.plan_for_many(&inner).await?;
                        if matches!(planned.plan, Plan::Single(Target::Key(_))) {
                            return Err(not_explained());
                        }
                        self.explain_planned(explain, &planned, request).await
                    }
                }
            }
            Plan::Gather(gather) => self.explain_gather(explain, gather, &inner, request).await,
            Plan::Scatter(scatter) => {
                self.explain_scatter(explain, scatter, &inner, request)
                    .await
            }
            other => {
                if explain.analyze {
                    return Err(not_explained());
                }
                // No shard sees the statement otherwise, and who may not run it is told no plan.
                let asked = format!("EXPLAIN {}", explain.statement);
                self.plan_of_shard(self.home(), &asked, request).await?;
                let node = self.describe_plan(other, &inner).await?;
                self.answer(explain, request, &node, &[])?;
                Ok(Tier::Proxy)
            }
        }
    }

    /// The same statement with another plan.
    async fn explain_planned(
        &mut self,
        explain: &Explain,
        planned: &Planned,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let again = Explain {
            plan: Box::new(planned.clone()),
            ..explain.clone()
        };
        // Such a plan has the literals in its text.
        let request = Request {
            literals: &[],
            catalog: request.catalog.clone(),
            ..*request
        };
        Box::pin(self.explain(&again, &request)).await
    }

    async fn explain_single(
        &mut self,
        explain: &Explain,
        shard: ShardId,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let name = self.shard_name(shard);
        let text = format!("{}{}", explain.prefix, explain.statement);
        if options::format(&explain.prefix) == Format::Other {
            // The shard's own document: nothing of ours fits into it.
            self.run_text(request, &text, shard).await?;
            return Ok(Tier::Single);
        }
        let title = format!("Single on {name}");
        let lines = self.plan_of_shard(shard, &text, request).await?;
        if !explain.json {
            let lines = lines.iter().map(|line| format!("  {line}"));
            let lines: Vec<String> = std::iter::once(title).chain(lines).collect();
            self.answer_lines(explain, request, &lines);
            return Ok(Tier::Single);
        }
        let document = lines.join("\n");
        let document = match tree::plan_in_json(&document) {
            None => document,
            Some((plan, behind)) => {
                let mut node = Node::new("Automator67 Single", title)
                    .hidden("Shards", Value::List(vec![name]));
                node.native = Native::Json(plan.to_owned());
                tree::json(&node, &[], behind)
            }
        };
        self.answer_lines(explain, request, &[document]);
        Ok(Tier::Single)
    }

    /// EXPLAIN by a shard of the client's own text, with the client's parameters.
    async fn plan_of_shard(
        &mut self,
        shard: ShardId,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Vec<String>> {
        if let Some(bound) = request.bound {
            let bound = bound.without_limit();
            let request = Request {
                bound: Some(&bound),
                catalog: request.catalog.clone(),
                ..*request
            };
            return self.ask_shard(shard, text, &request).await;
        }
        let index = self.link(shard).await?;
        self.note_effects(index, request.planned.session)?;
        let server = &mut self.links[index].server;
        queue(server, text, None, Answer::Shown);
        let mut lines = Vec::new();
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'D' {
                lines.extend(first_value(frame.body()));
            }
            Ok(())
        })
        .await?;
        self.hidden_error(index)?;
        Ok(lines)
    }

    /// The first column of a shard's answer to a question that holds the client's parameters.
    async fn ask_shard(
        &mut self,
        shard: ShardId,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Vec<String>> {
        self.send_select(shard, text, &[0], request).await?;
        let mut lines = Vec::new();
        while let Some(frame) = self.next_row(shard).await? {
            lines.extend(first_value(frame.body()));
        }
        Ok(lines)
    }

    /// What a shard says to an EXPLAIN of ours.
    async fn native_plan(
        &mut self,
        explain: &Explain,
        shard: ShardId,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Native> {
        let lines = self.ask_shard(shard, text, request).await?;
        if !explain.json {
            return Ok(Native::Lines(lines));
        }
        let document = lines.join("\n");
        let plan = tree::plan_in_json(&document);
        Ok(plan.map_or(Native::None, |(plan, _)| Native::Json(plan.to_owned())))
    }

    async fn explain_gather(
        &mut self,
        explain: &Explain,
        gather: &Gather,
        inner: &Request<'_>,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        refuse_format(explain)?;
        // What is wrong with the client's own text is said of that.
        self.check_on_home(request).await?;
        self.check_views_on_home(inner).await?;
        let home = self.shard_name(self.home());
        let mut root = Node::new("Automator67 Gather", format!("Gather on {home}"))
            .hidden("Shards", Value::List(vec![home.clone()]))
            .with("Reason", Value::Text(gather.reason.clone()));
        let mut run = Node::new("Run", format!("Run on {home}"))
            .with("SQL", Value::Text(readable(&gather.statement, inner)));
        if !explain.analyze {
            for fetch in &gather.fetches {
                let from = self.fetch_shards(&fetch.from, inner).await?;
                let title = format!("Fetch {} from {from}", fetch.relation.name);
                let mut node = Node::new("Fetch", title)
                    .hidden("Relation Name", Value::Text(fetch.relation.name.clone()))
                    .hidden("From", Value::Text(from));
                put_select(&mut node, fetch, inner);
                root.children.push(node);
            }
            root.children.push(run);
            self.answer(explain, request, &root, &[])?;
            return Ok(Tier::Gather);
        }
        let started = Instant::now();
        self.begin_implicit();
        let moved = self.load_fetches(gather, inner).await?;
        for (fetch, moved) in gather.fetches.iter().zip(&moved) {
            root.children.push(self.fetched(fetch, moved, inner));
        }
        let fetched = milliseconds(started);
        let statement = self.sql(&gather.statement, inner).await?;
        let text = format!("{}{statement}", explain.prefix);
        run.native = self.native_plan(explain, self.home(), &text, inner).await?;
        root.children.push(run);
        let footer = [
            property("Fetch Time", Value::Milliseconds(fetched)),
            property("Total Time", Value::Milliseconds(milliseconds(started))),
        ];
        self.end_fetches(gather).await?;
        self.answer(explain, request, &root, &footer)?;
        Ok(Tier::Gather)
    }

    /// What a fetch has moved.
    fn fetched(&self, fetch: &Fetch, moved: &Moved, request: &Request<'_>) -> Node {
        let name = &fetch.relation.name;
        let mut node = Node::new("Fetch", format!("Fetch {name}"))
            .hidden("Relation Name", Value::Text(name.clone()));
        let from_others = moved.rows_from_others(self.home());
        node.add_inline("Actual Rows", "actual rows", Value::Count(moved.rows));
        node.add_inline("Moved Rows", "moved rows", Value::Count(from_others));
        node.add_inline("Moved Bytes", "moved bytes", Value::Count(moved.bytes));
        put_select(&mut node, fetch, request);
        for (shard, rows, bytes, milliseconds) in &moved.shards {
            let name = self.shard_name(*shard);
            let mut part = Node::new("Shard Scan", format!("Shard Scan on {name}"))
                .hidden("Shard", Value::Text(name));
            put_actual(&mut part, *rows, *bytes, *milliseconds);
            node.children.push(part);
        }
        node
    }

    async fn fetch_shards(&mut self, from: &FetchSource, request: &Request<'_>) -> Outcome<String> {
        match from {
            FetchSource::Proxy(view) => Ok(format!("the proxy ({})", view.name())),
            FetchSource::Shards(set) => Ok(self.name_shards(set, request).await?.join(", ")),
        }
    }

    async fn name_shards(&mut self, set: &ShardSet, request: &Request<'_>) -> Outcome<Vec<String>> {
        let shards = self.shard_set(set, request).await?;
        Ok(self.names_of(&shards))
    }

    fn names_of(&self, shards: &[ShardId]) -> Vec<String> {
        shards.iter().map(|shard| self.shard_name(*shard)).collect()
    }

    async fn describe_plan(&mut self, plan: &Plan, request: &Request<'_>) -> Outcome<Node> {
        match plan {
            Plan::Multi(multi) => {
                let shards = self.name_shards(&multi.shards, request).await?;
                let text = match &multi.sql {
                    None => request.text.to_owned(),
                    Some(sql) => readable(sql, request),
                };
                let title = format!("Multi on {}", shards.join(", "));
                let mut root = Node::new("Automator67 Multi", title)
                    .hidden("Shards", Value::List(shards))
                    .with("SQL", Value::Text(text));
                for one in &multi.moves {
                    let where_to = match &one.route {
                        Some(_) => "to their shards",
                        None => "to every shard",
                    };
                    let title = format!("Move {} {where_to}", one.fetch.relation.name);
                    let mut node = Node::new("Move", title).hidden(
                        "Relation Name",
                        Value::Text(one.fetch.relation.name.clone()),
                    );
                    put_select(&mut node, &one.fetch, request);
                    root.children.push(node);
                }
                Ok(root)
            }
            Plan::WithWrites(with) => {
                let mut root = Node::new("Automator67 Steps", "Steps, one after the other");
                for part in with.parts.iter().filter(|part| part.writes) {
                    let title = format!("Write {}", part.name);
                    let text = Value::Text(part.body.clone());
                    root.children
                        .push(Node::new("Step", title).with("SQL", text));
                }
                let main = Value::Text(with.main.clone());
                root.children
                    .push(Node::new("Step", "Statement").with("SQL", main));
                Ok(root)
            }
            Plan::MergeSteps(merge) => {
                let mut root = Node::new("Automator67 Steps", "Steps, one after the other");
                let source = Value::Text(merge.source.clone());
                root.children
                    .push(Node::new("Step", "Read the source").with("SQL", source));
                let matched = format!("MERGE INTO {} ...{}", merge.target, merge.matched);
                let matched = Value::Text(matched);
                root.children
                    .push(Node::new("Step", "Change what matches").with("SQL", matched));
                for insert in merge.inserts.iter().filter_map(|one| one.insert.as_ref()) {
                    let text = format!("INSERT INTO {} ...", insert.0);
                    root.children
                        .push(Node::new("Step", "Insert the rest").with("SQL", Value::Text(text)));
                }
                Ok(root)
            }
            Plan::KeyUpdate(update) => {
                let mut root = Node::new(
                    "Automator67 Steps",
                    "Rows move to the shards of their new keys",
                );
                let delete = Value::Text(update.delete.clone());
                root.children
                    .push(Node::new("Step", "Delete").with("SQL", delete));
                let insert = format!("INSERT INTO {} ...", update.table);
                root.children
                    .push(Node::new("Step", "Insert").with("SQL", Value::Text(insert)));
                Ok(root)
            }
            Plan::Insert(insert) => {
                let title = match (insert.group, insert.key_type) {
                    (Some(_), Some(_)) => "Insert split by shard key",
                    (Some(_), None) => "Insert on the schema's shard",
                    (None, _) => "Insert into every copy",
                };
                let rows = Value::Count(insert.rows.len() as u64);
                Ok(Node::new("Automator67 Insert", title).with("Rows", rows))
            }
            Plan::InsertSelect(insert) => {
                let home = self.shard_name(self.home());
                let title = format!("Insert into {} from a query on {home}", insert.table.name);
                Ok(Node::new("Automator67 Insert", title)
                    .hidden("Relation Name", Value::Text(insert.table.name.clone()))
                    .with(
                        "SQL",
                        Value::Text(readable_drawing(
                            &insert.query_sql,
                            &insert.sequences,
                            request,
                        )),
                    ))
            }
            _ => Err(not_explained()),
        }
    }

    fn answer(
        &mut self,
        explain: &Explain,
        request: &Request<'_>,
        root: &Node,
        footer: &[Property],
    ) -> Outcome {
        refuse_format(explain)?;
        let lines = if explain.json {
            vec![tree::json(root, footer, "")]
        } else {
            tree::text(root, footer)
        };
        self.answer_lines(explain, request, &lines);
        Ok(())
    }

    fn answer_lines(&mut self, explain: &Explain, request: &Request<'_>, lines: &[String]) {
        let output = self.client.output();
        let oid = if explain.json { 114 } else { 25 };
        if request.bound.is_none() {
            message::put_row_description(output, &[("QUERY PLAN", oid, -1)]);
        }
        for line in lines {
            message::put_text_row(output, &[Some(line)]);
        }
        message::put_command_complete(output, "EXPLAIN");
    }
}

fn first_value(row: &[u8]) -> Option<String> {
    let values = message::data_row(row)?;
    let value = values.first().copied().flatten()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// The proxy's own views are not selected from.
fn put_select(node: &mut Node, fetch: &Fetch, request: &Request<'_>) {
    if !fetch.select.is_empty() {
        node.add("SQL", Value::Text(readable(&fetch.select, request)));
    }
}

/// A template for a reader: what is filled in at each run is a call.
fn readable(template: &[Piece], request: &Request<'_>) -> String {
    readable_drawing(template, &[], request)
}

fn readable_drawing(template: &[Piece], sequences: &[String], request: &Request<'_>) -> String {
    let mut text = String::new();
    let fill = |piece: &Piece, output: &mut String| match piece {
        Piece::Now => output.push_str("now()"),
        Piece::Sequence(n) => {
            let name = sequences.get(*n).map_or("", String::as_str);
            output.push_str(&format!("nextval({})", guc::quote_literal(name)));
        }
        Piece::Text(_) | Piece::Literal(_) | Piece::Key => {}
    };
    request.render(template, &fill, &mut text);
    text
}

fn put_actual(node: &mut Node, rows: u64, bytes: u64, milliseconds: f64) {
    node.add_inline("Actual Rows", "actual rows", Value::Count(rows));
    node.add_inline("Bytes", "bytes", Value::Count(bytes));
    // What went into a table is not timed shard by shard.
    if milliseconds > 0.0 {
        let time = Value::Milliseconds(milliseconds);
        node.add_inline("Actual Total Time", "time", time);
    }
}

fn property(name: &'static str, value: Value) -> Property {
    Property {
        name,
        value,
        inline: None,
        hidden: false,
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn refuse_format(explain: &Explain) -> Outcome {
    if options::format(&explain.prefix) != Format::Other {
        return Ok(());
    }
    Err(Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "this format of EXPLAIN is not supported for statements over several shards",
    )
    .hint("Use FORMAT text or FORMAT json.")
    .into())
}

fn not_explained() -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "EXPLAIN of this statement over several shards is not supported",
    )
    .hint("EXPLAIN without ANALYZE and without parameters, or EXPLAIN its SELECT part.")
    .into()
}
