//! What reading and writing each relation may reach behind the proxy's back, by the code that it
//! runs: triggers, policies, rules, defaults, generated columns, checks, domains, casts, expressions
//! of indexes and partitions, foreign keys, and functions of all of these.
//!
//! A function is no safer than the relations it names, and a relation no safer than the code behind
//! it, so both are judged until nothing changes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    super::{
        Change, Danger, ForeignKey, FunctionSafety, Placement, Relation, RelationKind,
        StatementTrigger, keys,
        safety::{self, Names, Verdicts},
    },
    Document, FIRST_USER_OID, Function, ROW, StoredRelation, Trigger,
};

/// Where a function is the cause.
pub(super) const DECLARE: &str = "Distribute the tables so that rows that belong together are on one shard. If the function touches no distributed or reference table, declare it safe: select automator67.declare_safe('f')";
const TELL: &str =
    "Send the notification from the application, or write to a local table whose trigger sends it.";
const DEFINE: &str =
    "Change the schema by statements of your own, or in a DO block: they go to every shard.";
const KEY: &str = "Give the key its final value in the statement: its shard is chosen before the trigger runs. Or undistribute the table: SELECT undistribute_table('...')";
const POLICY: &str = "Make the table that the policy reads a reference table, or drop the policy.";
const RULE: &str = "Drop the rule, and use a trigger, or do it in the application.";
const PRIVILEGES: &str = "Disable row security, and use privileges, or a view.";
const FOREIGN_KEY: &str = "Distribute both tables by the columns of the foreign key, make the referenced one a reference table, or drop the key.";
const EVEN: &str = "Give the column a value in the statement, which is the same for every copy.";
const UNLOCK: &str = "Try again when the lock is gone.";
const REPAIR: &str =
    "Undo the change of its shard key where it was made, or undistribute the table.";

/// What the judgement is made of.
pub(super) struct Objects<'a> {
    pub document: &'a Document,
    pub stored: &'a [Arc<StoredRelation>],
    pub foreign_keys: &'a [ForeignKey],
    pub functions: &'a [Function],
    pub calls: &'a [(u32, u32)],
    /// Functions that change the schema, by name.
    pub definers: &'a HashMap<String, String>,
}

/// Why relations cannot be read and written, by oid.
#[derive(Default)]
struct Dangers {
    reads: HashMap<u32, Danger>,
    writes: HashMap<u32, Danger>,
    /// Of changes that foreign keys make by themselves.
    cascades: HashMap<u32, Danger>,
}

/// One round.
struct Round<'a> {
    objects: &'a Objects<'a>,
    relations: &'a HashMap<u32, Relation>,
    verdicts: &'a Verdicts,
    found: Dangers,
}

impl Objects<'_> {
    /// Judges all functions and marks all relations.
    pub(super) fn judge(
        &self,
        relations: &mut HashMap<u32, Relation>,
        mut names: Names,
    ) -> Verdicts {
        self.note_statement_triggers(relations);
        loop {
            let verdicts = safety::judge(self.functions, self.calls, &names);
            let found = self.dangers(relations, &verdicts);
            let known = (names.dangerous_reads.len(), names.dangerous_writes.len());
            names.dangerous_reads = by_name(&found.reads, relations);
            names.dangerous_writes = by_name(&found.writes, relations);
            if known == (names.dangerous_reads.len(), names.dangerous_writes.len()) {
                for (oid, danger) in found.reads {
                    let relation = relations.entry(oid);
                    relation.and_modify(|one| one.unsafe_reads = Some(danger));
                }
                for (oid, danger) in found.writes {
                    let relation = relations.entry(oid);
                    relation.and_modify(|one| one.unsafe_writes = Some(danger));
                }
                return verdicts;
            }
        }
    }

    fn note_statement_triggers(&self, relations: &mut HashMap<u32, Relation>) {
        let transitions = self.document.reach.transitions.iter().flatten();
        let transitions: HashSet<(u32, &str)> = transitions
            .map(|(table, name)| (*table, name.as_str()))
            .collect();
        for trigger in self.document.triggers.iter().flatten() {
            let sees_all = trigger.events & ROW == 0
                || transitions.contains(&(trigger.relation, trigger.name.as_str()));
            if let Some(relation) = relations.get_mut(&trigger.relation)
                && matches!(relation.placement, Placement::Distributed { .. })
                && sees_all
                && !trigger.is_ours()
            {
                relation.statement_triggers.push(StatementTrigger {
                    name: trigger.name.clone(),
                    changes: trigger.changes().collect(),
                });
            }
        }
    }

    fn dangers(&self, relations: &HashMap<u32, Relation>, verdicts: &Verdicts) -> Dangers {
        let mut round = Round {
            objects: self,
            relations,
            verdicts,
            found: Dangers::default(),
        };
        round.note_rules_and_policies();
        round.note_triggers();
        round.note_calls();
        round.note_types();
        round.note_casts();
        round.note_operator_classes();
        round.spread_reads();
        round.spread_writes();
        round.note_foreign_keys();
        round.spread_to_partitions();
        round.found
    }
}

/// Lower-case names of local relations, and why.
fn by_name(
    dangers: &HashMap<u32, Danger>,
    relations: &HashMap<u32, Relation>,
) -> HashMap<String, String> {
    let named = |(oid, danger): (&u32, &Danger)| {
        let relation = relations.get(oid)?;
        let local = relation.placement == Placement::Local && !relation.reads_placed;
        local.then(|| (relation.name.name.to_lowercase(), danger.why.clone()))
    };
    dangers.iter().filter_map(named).collect()
}

/// Keeps the first reason. False: there was one.
fn mark(map: &mut HashMap<u32, Danger>, oid: u32, danger: Danger) -> bool {
    let is_new = !map.contains_key(&oid);
    map.entry(oid).or_insert(danger);
    is_new
}

pub(super) fn danger(why: String, hint: &str) -> Danger {
    Danger {
        why,
        hint: hint.to_owned(),
    }
}

fn is_placed(relation: &Relation) -> bool {
    relation.placement != Placement::Local
}

/// Its rows, or those that it shows, are on several shards.
pub(super) fn is_split(relation: &Relation) -> bool {
    relation.reads_placed
        || matches!(
            relation.placement,
            Placement::Distributed { .. } | Placement::Schema { .. }
        )
}

impl<'a> Round<'a> {
    fn relation(&self, oid: u32) -> Option<&'a Relation> {
        self.relations.get(&oid)
    }

    fn mark_writes(&mut self, oid: u32, danger: Danger) {
        mark(&mut self.found.cascades, oid, danger.clone());
        mark(&mut self.found.writes, oid, danger);
    }

    fn mark_both(&mut self, oid: u32, danger: Danger) {
        self.mark_writes(oid, danger.clone());
        mark(&mut self.found.reads, oid, danger);
    }

    // ---- rules and policies ----

    fn note_rules_and_policies(&mut self) {
        for stored in self.objects.stored {
            let Some(relation) = self.relation(stored.oid) else {
                continue;
            };
            let (name, placed) = (&relation.name.name, is_placed(relation));
            if stored.rules && (placed || stored.reads_placed) {
                let why =
                    format!("Table \"{name}\" has a rule, which could reach rows of other shards.");
                self.mark_writes(stored.oid, danger(why, RULE));
            }
            if stored.row_security && placed {
                let why = format!(
                    "Row level security is enabled on \"{name}\"; policies see one shard's rows."
                );
                self.mark_both(stored.oid, danger(why, PRIVILEGES));
            }
        }
        // A policy of a local table sees the home shard's rows of what it reads.
        for (table, read) in self.objects.document.reach.policy_reads.iter().flatten() {
            let split = self.relation(*read).filter(|read| is_split(read));
            if let Some(split) = split.filter(|_| self.has_policies(*table)) {
                let name = &split.name.name;
                let why = format!("A policy of it reads the distributed table or view \"{name}\".");
                self.mark_both(*table, danger(why, POLICY));
            }
        }
    }

    fn has_policies(&self, oid: u32) -> bool {
        let stored = self.objects.stored.iter().find(|one| one.oid == oid);
        stored.is_some_and(|one| one.row_security)
    }

    // ---- triggers ----

    fn note_triggers(&mut self) {
        let triggers = self.objects.document.triggers.iter().flatten();
        for trigger in triggers.filter(|trigger| !trigger.is_ours()) {
            let relation = self.relation(trigger.relation);
            let Some(found) = relation.and_then(|one| self.trigger_danger(trigger, one)) else {
                continue;
            };
            let why = format!("Trigger \"{}\" is not safe. {}", trigger.name, found.why);
            let found = Danger { why, ..found };
            // Cascades update and delete rows.
            if trigger.is_fired_by(Change::Update) || trigger.is_fired_by(Change::Delete) {
                mark(&mut self.found.cascades, trigger.relation, found.clone());
            }
            mark(&mut self.found.writes, trigger.relation, found);
        }
    }

    fn trigger_danger(&self, trigger: &Trigger, relation: &Relation) -> Option<Danger> {
        let mut functions = self.objects.functions.iter();
        let function = functions.find(|one| one.oid == trigger.function);
        let called = self.call_danger(trigger.function, relation);
        called.or_else(|| match &relation.placement {
            _ if !trigger.changes_rows() => None,
            Placement::Distributed { key, .. } => key_danger(trigger, function, key),
            Placement::Reference => uneven_danger(function?),
            Placement::Schema { .. } | Placement::Local => None,
        })
    }

    /// What a function does to the relation whose code calls it.
    fn call_danger(&self, oid: u32, relation: &Relation) -> Option<Danger> {
        let mut functions = self.objects.functions.iter();
        let function = functions.find(|one| one.oid == oid);
        let defines = function.and_then(|one| Some((one, self.objects.definers.get(&one.name)?)));
        if let Some((function, command)) = defines {
            let name = &function.name;
            let why = format!("Function \"{name}\" changes the schema ({command}), on one shard.");
            return Some(danger(why, DEFINE));
        }
        match self.verdicts.safety.get(&oid)? {
            FunctionSafety::Unsafe(why) => Some(danger(why.clone(), DECLARE)),
            FunctionSafety::HomeOnly(why) if is_placed(relation) => {
                let tells = self.verdicts.telling.contains(&oid);
                Some(danger(why.clone(), if tells { TELL } else { DECLARE }))
            }
            FunctionSafety::HomeOnly(_) | FunctionSafety::Safe => None,
        }
    }

    // ---- expressions ----

    fn note_calls(&mut self) {
        let document = self.objects.document;
        let stored = document.routes.relation_calls();
        let calls = document.relation_calls.iter().flatten().copied();
        for (oid, function) in calls.chain(stored) {
            let Some(relation) = self.relation(oid) else {
                continue;
            };
            let when_read = relation.kind == RelationKind::View || self.has_policies(oid);
            match self.call_danger(function, relation) {
                Some(found) if when_read => self.mark_both(oid, found),
                Some(found) => self.mark_writes(oid, found),
                None => {}
            }
        }
    }

    /// Columns of types that run code where a value is stored.
    fn note_types(&mut self) {
        for (type_oid, _, function) in self.objects.document.reach.types.iter().flatten() {
            for relation in self.relations.values() {
                if has_type(relation, *type_oid)
                    && let Some(found) = self.call_danger(*function, relation)
                {
                    self.mark_writes(relation.oid, found);
                }
            }
        }
    }

    /// A cast may be made wherever a value is read, or stored as another type. One that leads from or to
    /// a built-in type is a matter of the other type alone: who has made that says nothing of others'
    /// tables.
    fn note_casts(&mut self) {
        let casts = self.objects.document.names.casts.iter().flatten();
        for (source, target, _, function) in casts {
            let between_built_in = *source < FIRST_USER_OID && *target < FIRST_USER_OID;
            let counts = |type_oid: u32| between_built_in || type_oid >= FIRST_USER_OID;
            for relation in self.relations.values() {
                let Some(found) = self.call_danger(*function, relation) else {
                    continue;
                };
                if counts(*source) && has_type(relation, *source) {
                    mark(&mut self.found.reads, relation.oid, found.clone());
                }
                if counts(*target) && has_type(relation, *target) {
                    self.mark_writes(relation.oid, found);
                }
            }
        }
    }

    /// Values are compared, sorted and hashed by functions of operator classes.
    fn note_operator_classes(&mut self) {
        let names = &self.objects.document.names;
        for relation in self.relations.values() {
            let types = names.class_types.iter().flatten();
            let of_types = types.filter(|(type_oid, _)| has_type(relation, *type_oid));
            let tables = names.class_tables.iter().flatten();
            let of_indexes = tables.filter(|(table, _)| *table == relation.oid);
            let mut functions = of_types.chain(of_indexes).map(|(_, function)| function);
            let found = functions.find_map(|function| self.call_danger(*function, relation));
            if let Some(found) = found {
                self.mark_both(relation.oid, found);
            }
        }
    }

    // ---- what leads from one relation to another ----

    /// A view is no safer to read than what it reads, and of no more use.
    fn spread_reads(&mut self) {
        let document = self.objects.document;
        let views = document.view_reads.iter().flatten();
        let pairs: Vec<(u32, u32)> = views
            .chain(document.reach.policy_reads.iter().flatten())
            .copied()
            .collect();
        let mut again = true;
        while again {
            again = false;
            for (reader, read) in &pairs {
                let unusable = self.relation(*read).and_then(unusable);
                let found = unusable.or_else(|| self.found.reads.get(read).cloned());
                if let Some(found) = found {
                    again |= mark(&mut self.found.reads, *reader, found.clone());
                    self.mark_writes(*reader, found);
                }
            }
        }
    }

    /// Rules, children, and foreign keys that change rows by themselves.
    fn spread_writes(&mut self) {
        let document = self.objects.document;
        let cascades: HashSet<(u32, u32)> = document.cascades.iter().flatten().copied().collect();
        // The rows of a materialized view are written by REFRESH, which only reads what it is of.
        let is_written = |(from, _): &(u32, u32)| {
            let relation = self.relation(*from);
            relation.is_some_and(|one| one.kind != RelationKind::MaterializedView)
        };
        let pairs: Vec<(u32, u32)> = document.routes.follows().filter(is_written).collect();
        let mut again = true;
        while again {
            again = false;
            for (from, to) in &pairs {
                let found = match cascades.contains(&(*to, *from)) {
                    true => self.found.cascades.get(to),
                    false => self.found.writes.get(to),
                };
                if let Some(found) = found.cloned() {
                    again |= mark(&mut self.found.cascades, *from, found.clone());
                    again |= mark(&mut self.found.writes, *from, found);
                }
            }
        }
    }

    /// A row of a partition has the keys of the table that it is a part of.
    fn spread_to_partitions(&mut self) {
        let is_partition = |(parent, _): &(u32, u32)| {
            let relation = self.relation(*parent);
            relation.is_some_and(|one| one.kind == RelationKind::Partitioned)
        };
        let pairs = self.objects.document.routes.follows();
        let pairs: Vec<(u32, u32)> = pairs.filter(is_partition).collect();
        let mut again = true;
        while again {
            again = false;
            for (parent, part) in &pairs {
                if let Some(found) = self.found.writes.get(parent).cloned() {
                    again |= mark(&mut self.found.writes, *part, found);
                }
            }
        }
    }

    fn note_foreign_keys(&mut self) {
        let relations = self.relations.values();
        let by_name: HashMap<_, &Relation> = relations.map(|one| (&one.name, one)).collect();
        let not_valid = self.objects.document.reach.not_valid.iter().flatten();
        let not_valid: HashSet<(u32, &str)> = not_valid
            .map(|(table, name)| (*table, name.as_str()))
            .collect();
        for key in self.objects.foreign_keys {
            let tables = (by_name.get(&key.table), by_name.get(&key.referenced_table));
            let (Some(from), Some(to)) = tables else {
                continue;
            };
            let Some(why) = foreign_key_danger(key, &from.placement, &to.placement) else {
                continue;
            };
            let found = danger(why, FOREIGN_KEY);
            // Its rows may refer to rows of other shards, where nobody sees them.
            if not_valid.contains(&(from.oid, key.name.as_str())) {
                mark(&mut self.found.writes, to.oid, found.clone());
            }
            mark(&mut self.found.writes, from.oid, found);
        }
    }
}

fn has_type(relation: &Relation, type_oid: u32) -> bool {
    let mut columns = relation.columns.iter();
    columns.any(|column| column.type_oid == type_oid)
}

fn unusable(relation: &Relation) -> Option<Danger> {
    let hint = if is_placed(relation) { REPAIR } else { UNLOCK };
    Some(danger(relation.unusable.clone()?, hint))
}

/// A trigger that may give a row another shard key than the statement did.
fn key_danger(trigger: &Trigger, function: Option<&Function>, key: &str) -> Option<Danger> {
    let seen = function.filter(|one| one.language == "plpgsql");
    let why = match seen.and_then(|function| Some((function, function.body.as_deref()?))) {
        Some((function, body)) => {
            let changes = keys::changes(&function.name, body, key)?;
            format!("Function \"{}\" {changes}", function.name)
        }
        None => {
            let mut arguments = trigger.arguments.split("\\000");
            let given = arguments.any(|argument| argument == key);
            given.then(|| format!("It is given the shard key \"{key}\"."))?
        }
    };
    Some(danger(why, KEY))
}

/// A trigger that may give each copy of a row another value.
fn uneven_danger(function: &Function) -> Option<Danger> {
    let word = safety::uneven(function)?;
    let name = &function.name;
    let why = format!("Function \"{name}\" uses \"{word}\", which is another value for each copy.");
    Some(danger(why, EVEN))
}

/// A server checks a foreign key against its own rows. Why those are not all that count.
fn foreign_key_danger(key: &ForeignKey, from: &Placement, to: &Placement) -> Option<String> {
    let (name, referenced) = (&key.name, &key.referenced_table.name);
    match (from, to) {
        (Placement::Local, Placement::Local) | (_, Placement::Reference) => None,
        (
            Placement::Local | Placement::Reference,
            Placement::Distributed { .. } | Placement::Schema { .. },
        ) => Some(format!(
            "Foreign key \"{name}\" references distributed table \"{referenced}\"."
        )),
        (_, Placement::Local) => Some(format!(
            "Foreign key \"{name}\" references local table \"{referenced}\"."
        )),
        (Placement::Schema { colocation: from }, Placement::Schema { colocation: to })
            if from == to =>
        {
            None
        }
        (Placement::Schema { .. }, _) | (_, Placement::Schema { .. }) => Some(format!(
            "Foreign key \"{name}\" references table \"{referenced}\", which is on another shard."
        )),
        (
            Placement::Distributed {
                key: from_key,
                colocation: from_group,
                ..
            },
            Placement::Distributed {
                key: to_key,
                colocation: to_group,
                ..
            },
        ) => {
            let mut pairs = key.columns.iter().zip(&key.referenced_columns);
            let joined = pairs.any(|(column, other)| column == from_key && other == to_key);
            (from_group != to_group || !joined).then(|| {
                format!(
                    "Foreign key \"{name}\" to \"{referenced}\" does not join the shard keys of two colocated tables."
                )
            })
        }
    }
}
