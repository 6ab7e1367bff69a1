//! Global unique indexes at work: what a statement has changed is brought to the indexes before the
//! statement is done, in the same transaction; and rows are found by them.
//!
//! Triggers on the shards note which values statements add and remove (see
//! `migrations_of_shards/V2__unique_indexes.sql`). Every value belongs to the shard of its hash,
//! where a primary key keeps it unique and makes clashing transactions wait for each other.

mod admin;

use std::collections::{BTreeMap, BTreeSet};

use automator67_planner::{
    catalog::{Catalog, Placement, ShardId, UniqueIndex},
    key::{self, KeyValue},
    plan::{IndexLookup, SessionEffects},
};

use super::{
    Session,
    planning::{Request, read_key, shard_of},
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc, message,
    server::{
        Answer,
        call::{Call, text_array},
        relay,
    },
};

/// Values are sent to a shard in pieces of so many.
const VALUES_MAX: usize = 5000;
/// So much may be due to the client before an answer that may have to be taken back.
const OUTPUT_BYTES: usize = 4096;
const UNIQUE_VIOLATION: &str = "23505";

/// A value and the shard key of its row.
type Entry = (String, Option<String>);

/// What a statement has changed, of all shards together.
#[derive(Default)]
struct Changes {
    /// By index and entry: how often it was added, less how often it was removed.
    amounts: BTreeMap<(u32, Entry), i64>,
    /// Indexes whose table was truncated.
    emptied: BTreeSet<u32>,
}

impl Changes {
    /// Takes a row of `a67_take_index_changes()` in.
    fn add(&mut self, row: Vec<Option<String>>) {
        let mut fields = row.into_iter();
        let mut next = || fields.next().flatten();
        let Some(index) = next().and_then(|id| id.parse().ok()) else {
            return;
        };
        let (value, owner, amount) = (next(), next(), next());
        match (value, amount.and_then(|amount| amount.parse::<i64>().ok())) {
            (Some(value), Some(amount)) => {
                *self.amounts.entry((index, (value, owner))).or_default() += amount;
            }
            _ => {
                self.emptied.insert(index);
            }
        }
    }

    /// What is left for each shard and index, sorted by value.
    fn by_shard(self, catalog: &Catalog) -> Outcome<BTreeMap<(ShardId, u32), Part>> {
        let mut parts: BTreeMap<(ShardId, u32), Part> = BTreeMap::new();
        for ((id, entry), amount) in self.amounts {
            if amount == 0 {
                continue;
            }
            let shard = shard_of_value(catalog, find(catalog, id)?, &entry.0)?;
            let part = parts.entry((shard, id)).or_default();
            let list = if amount < 0 {
                &mut part.removed
            } else {
                &mut part.added
            };
            // What was added twice fails like any other clash.
            for _ in 0..amount.unsigned_abs() {
                list.push(entry.clone());
            }
        }
        Ok(parts)
    }
}

/// What one shard's part of an index is told.
#[derive(Default)]
struct Part {
    removed: Vec<Entry>,
    added: Vec<Entry>,
}

impl Part {
    /// What is to be called; all removals come before all additions.
    fn calls(&self, id: u32) -> Vec<Call> {
        let call = |removed: &[Entry], added: &[Entry]| {
            Call::to(format!("a67_apply_{id}"))
                .with(text_array(
                    removed.iter().map(|entry| Some(entry.0.as_str())),
                ))
                .with(text_array(removed.iter().map(|entry| entry.1.as_deref())))
                .with(text_array(added.iter().map(|entry| Some(entry.0.as_str()))))
                .with(text_array(added.iter().map(|entry| entry.1.as_deref())))
        };
        if self.removed.len() + self.added.len() <= VALUES_MAX {
            return vec![call(&self.removed, &self.added)];
        }
        let removals = self
            .removed
            .chunks(VALUES_MAX)
            .map(|piece| call(piece, &[]));
        let additions = self.added.chunks(VALUES_MAX).map(|piece| call(&[], piece));
        removals.chain(additions).collect()
    }
}

impl Session {
    /// Before a statement whose values may belong to any shard: a session that has connections and
    /// waits for more would be waited for itself, so it takes them in one order.
    pub(super) async fn borrow_for_indexes(&mut self) -> Outcome {
        for shard in self.all_shards() {
            match self.idle_link(shard).await {
                Ok(_) => {}
                // The statement can do without it, until it needs it.
                Err(failure) if failure.sqlstate() == sqlstate::CONNECTION_FAILURE => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// After a statement that may have written to a table with an index: brings the indexes up to
    /// date. What the client is told of the statement's end is held back until that is done.
    pub(super) async fn apply_index_changes(&mut self) -> Outcome {
        let complete = message::split_complete(self.client.output());
        self.apply_changes().await?;
        self.client.output().extend_from_slice(&complete);
        Ok(())
    }

    async fn apply_changes(&mut self) -> Outcome {
        let changes = self.take_index_changes().await?;
        if changes.amounts.is_empty() && changes.emptied.is_empty() {
            return Ok(());
        }
        self.refresh_catalog().await?;
        let catalog = self.catalog();
        for id in &changes.emptied {
            for shard in self.all_shards() {
                let empty = Call::to("a67_empty_index").with(id);
                self.write_index(shard, &empty, find(&catalog, *id)?, &catalog)
                    .await?;
            }
        }
        // One after the other in one order: two statements that add the same values wait for each
        // other once.
        for ((shard, id), part) in changes.by_shard(&catalog)? {
            let index = find(&catalog, id)?;
            for call in part.calls(id) {
                self.write_index(shard, &call, index, &catalog).await?;
            }
        }
        Ok(())
    }

    async fn take_index_changes(&mut self) -> Outcome<Changes> {
        let mut asked = Vec::new();
        for (index, link) in self.links.iter_mut().enumerate() {
            if link.begun && link.wrote {
                link.server
                    .call(&Call::to("a67_take_index_changes"), Answer::Shown);
                relay::send(&mut link.server).await?;
                asked.push(index);
            }
        }
        let mut changes = Changes::default();
        let mut failure = None;
        for index in asked {
            let server = &mut self.links[index].server;
            let taken = relay::collect(&mut self.client, server, |_, frame| {
                if frame.tag == b'D' {
                    changes.add(text_row(frame.body()));
                }
                Ok(())
            });
            match taken.await.and_then(|()| self.hidden_error(index)) {
                Ok(()) => {}
                Err(Failure::ClientGone) => return Err(Failure::ClientGone),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(changes), Err)
    }

    async fn write_index(
        &mut self,
        shard: ShardId,
        call: &Call,
        index: &UniqueIndex,
        catalog: &Catalog,
    ) -> Outcome {
        let at = self.link(shard).await?;
        self.note_effects(
            at,
            SessionEffects {
                writes: true,
                ..SessionEffects::default()
            },
        )?;
        let result = self.call(shard, call).await;
        result.map_err(|failure| in_words_of_table(failure, index, catalog))
    }

    /// Answers a statement on the one shard that has its row, as an index says. False: nothing is
    /// known, or the row is not there any more.
    pub(super) async fn run_by_index(
        &mut self,
        lookup: &IndexLookup,
        request: &Request<'_>,
    ) -> Outcome<bool> {
        let named = request
            .bound
            .is_some_and(|bound| !bound.portal.is_empty() || bound.limit != 0);
        if named || self.client.captured.is_some() {
            return Ok(false);
        }
        let Some(value) = read_key(lookup.key_type, &lookup.source, request, None) else {
            return Ok(false);
        };
        let Some(text) = plain_text(&value) else {
            return Ok(false);
        };
        let place = shard_of_held(&request.catalog, &value)?;
        let ask = Call::to(format!("a67_owner_{}", lookup.index)).with(text);
        let row = self.call_rows(place, &ask).await?.pop();
        let mut row = row.unwrap_or_default().into_iter();
        let known = row.next().flatten();
        let shard = match known.as_deref() {
            Some("t") => self.shard_of_owner(lookup.index, row.next().flatten(), request)?,
            // No shard has such a row: any says so.
            Some(_) => Some(place),
            None => None,
        };
        let Some(shard) = shard else { return Ok(false) };
        if self.client.output().len() > OUTPUT_BYTES {
            self.client.flush().await?;
        }
        let before = self.client.output().len();
        self.run_single(request, shard).await?;
        if known.as_deref() != Some("t") {
            return Ok(true);
        }
        let complete = message::split_complete(self.client.output());
        let found = message_rows(&complete) != Some(0);
        if found {
            self.client.output().extend_from_slice(&complete);
        } else if self.client.output().len() >= before {
            self.client.output().truncate(before);
        } else {
            return Err(Report::error(
                "40001",
                "could not serialize access: the row has moved to another shard",
            )
            .hint("Repeat the statement.")
            .into());
        }
        Ok(found)
    }

    fn shard_of_owner(
        &self,
        index: u32,
        owner: Option<String>,
        request: &Request<'_>,
    ) -> Outcome<Option<ShardId>> {
        let catalog = &request.catalog;
        let index = find(catalog, index)?;
        let relation = catalog.relation(&index.table);
        let Some(Placement::Distributed {
            key_type,
            colocation,
            ..
        }) = relation.map(|relation| &relation.placement)
        else {
            return Ok(None);
        };
        let value = match owner {
            None => Some(KeyValue::Null),
            Some(text) => key::from_text(*key_type, &text),
        };
        match value {
            Some(value) => shard_of(catalog, *colocation, &value),
            None => Ok(None),
        }
    }
}

/// The number of rows in the tag of a CommandComplete message.
fn message_rows(complete: &[u8]) -> Option<u64> {
    let body = complete.get(crate::frame::HEADER_BYTES..)?;
    message::tag_rows(message::command_tag(body))
}

fn text_row(body: &[u8]) -> Vec<Option<String>> {
    let values = message::data_row(body).unwrap_or_default();
    let text = |value: Option<&[u8]>| value.map(|it| String::from_utf8_lossy(it).into_owned());
    values.into_iter().map(text).collect()
}

/// A value in a form that every server reads alike; `None` for those that are not looked up.
fn plain_text(value: &KeyValue) -> Option<String> {
    match value {
        KeyValue::Integer(number) => Some(number.to_string()),
        KeyValue::Text(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        KeyValue::Uuid(bytes) => Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        KeyValue::Null | KeyValue::Date(_) | KeyValue::Timestamp(_) => None,
    }
}

/// An index that is in the snapshot: notes of another one come from a change of the schema.
fn find(catalog: &Catalog, id: u32) -> Outcome<&UniqueIndex> {
    let found = catalog.unique_indexes.iter().find(|index| index.id == id);
    found.ok_or_else(|| {
        Report::error(
            "40001",
            "could not serialize access due to a new global unique index",
        )
        .hint("Repeat the transaction.")
        .into()
    })
}

fn shard_of_value(catalog: &Catalog, index: &UniqueIndex, text: &str) -> Outcome<ShardId> {
    let relation = catalog.relation(&index.table);
    let column = relation.and_then(|relation| relation.column(&index.column));
    let key_type = column.and_then(|column| column.key_type().ok());
    let value = key_type.and_then(|key_type| key::from_text(key_type, text));
    let value = value.ok_or_else(|| {
        Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("value \"{text}\" cannot be in a global unique index"),
        )
        .detail(format!(
            "Index \"{}\" has it in column \"{}\".",
            index.name, index.column
        ))
        .hint("Use finite dates of the years 1 to 9999.")
    })?;
    shard_of_held(catalog, &value)
}

/// Values are on the shards that the ring says, whatever says so of the table's rows.
fn shard_of_held(catalog: &Catalog, value: &KeyValue) -> Outcome<ShardId> {
    catalog.ring.shard_of(key::token(value)).ok_or_else(|| {
        Report::error(sqlstate::INTERNAL_ERROR, "the ring of shards is empty").into()
    })
}

/// A clash is told as if the table itself had the constraint.
fn in_words_of_table(failure: Failure, index: &UniqueIndex, catalog: &Catalog) -> Failure {
    let Failure::Shard(frame) = &failure else {
        return failure;
    };
    if failure.sqlstate() != UNIQUE_VIOLATION {
        return failure;
    }
    let report = Report::of_frame(frame);
    let table = catalog
        .relation(&index.table)
        .map_or(&index.table, |relation| &relation.name);
    let detail = report
        .detail
        .as_ref()
        .map(|detail| detail.replacen("(value)", &format!("({})", identifier(&index.column)), 1));
    Report { detail, ..report }
        .constraint(&table.schema, &table.name, &index.name)
        .into()
}

/// As the server prints a name: in quotes where it needs them.
fn identifier(name: &str) -> String {
    let plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if plain {
        name.to_owned()
    } else {
        guc::quote_identifier(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_and_removed_again_is_no_change() {
        let row = |value: &str, owner: &str, amount: &str| {
            let some = |text: &str| Some(text.to_owned());
            vec![some("1"), some(value), some(owner), some(amount)]
        };
        let mut changes = Changes::default();
        changes.add(row("x", "1", "1"));
        changes.add(row("x", "1", "-1"));
        changes.add(row("x", "2", "1"));
        changes.add(vec![Some("2".to_owned()), None, None, None]);
        let left: Vec<i64> = changes.amounts.values().copied().collect();
        assert_eq!(left, [0, 1]);
        assert_eq!(changes.emptied.into_iter().collect::<Vec<_>>(), [2]);
    }
}
