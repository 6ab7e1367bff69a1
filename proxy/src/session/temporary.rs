//! The session's temporary objects. They live on its connection to the home shard, no other shard and
//! no catalog snapshot has them, and names mean them before anything else. So the session asks for
//! them again whenever something may have made or dropped some, and before the next text is planned.

use std::sync::Arc;

use automator67_planner::catalog::{Catalog, Temporary};

use super::Session;
use crate::error::{Outcome, Report, sqlstate};

/// What is known of them.
#[derive(Default)]
pub struct Known {
    /// Judged by the catalog that is in `by`.
    objects: Arc<Temporary>,
    /// As the home shard has told; none: there are no objects.
    document: Option<String>,
    by: Option<Arc<Catalog>>,
    /// There may be others now.
    stale: bool,
    /// There may be others when the transaction ends.
    changed: bool,
}

impl Known {
    /// Them.
    pub fn objects(&self) -> &Arc<Temporary> {
        &self.objects
    }

    /// What runs next may make or drop some.
    pub fn expect_change(&mut self) {
        self.stale = true;
        self.changed = true;
    }

    /// A transaction or a part of it is over, and with it what it has made or dropped.
    pub fn end_transaction(&mut self) {
        self.stale |= self.changed;
    }

    /// There are some, or may be.
    pub fn matter(&self) -> bool {
        self.stale || self.document.is_some()
    }

    /// They have to be asked for, or judged, again.
    fn is_outdated(&self, catalog: &Arc<Catalog>) -> bool {
        let judged = self.by.as_ref().is_some_and(|by| Arc::ptr_eq(by, catalog));
        self.stale || !judged
    }
}

impl Session {
    /// Before a text is planned.
    pub(super) async fn refresh_temporary(&mut self) -> Outcome {
        let catalog = self.catalog();
        if self.transaction.is_failed() || !self.temporary.is_outdated(&catalog) {
            return Ok(());
        }
        if std::mem::take(&mut self.temporary.stale) {
            self.temporary.changed &= self.transaction.is_open();
            let home = self.home();
            self.temporary.document = match self.link_position(home) {
                // The connection that they would be on was given back.
                None => None,
                Some(_) => self.query_value(home, OBJECTS).await?,
            };
        }
        let objects = match &self.temporary.document {
            None => Temporary::default(),
            Some(document) => Temporary::read(document, &catalog).map_err(|error| {
                Report::error(
                    sqlstate::INTERNAL_ERROR,
                    "the temporary objects could not be read",
                )
                .detail(error.to_string())
            })?,
        };
        self.temporary.document.take_if(|_| objects.is_empty());
        if !(objects.is_empty() && self.temporary.objects.is_empty()) {
            self.temporary.objects = Arc::new(objects);
        }
        self.temporary.by = Some(catalog);
        Ok(())
    }
}

/// What [`Temporary::read`] reads. Null if there is nothing.
const OBJECTS: &str = "
with mine as materialized (
    select c.oid, c.relname, c.relkind, c.relrowsecurity
    from pg_catalog.pg_class c where c.relnamespace = pg_catalog.pg_my_temp_schema()
),
part (relation, classid, objid, runs) as (
    select f.adrelid, 'pg_catalog.pg_attrdef'::pg_catalog.regclass::oid, f.oid, 'write'
    from pg_catalog.pg_attrdef f join mine m on m.oid = f.adrelid
    union all
    select m.oid, 'pg_catalog.pg_constraint'::pg_catalog.regclass, n.oid, 'write'
    from pg_catalog.pg_constraint n join mine m on m.oid = n.conrelid
    union all
    select m.oid, 'pg_catalog.pg_constraint'::pg_catalog.regclass, n.oid, 'write'
    from pg_catalog.pg_constraint n
    join pg_catalog.pg_attribute a on a.atttypid = n.contypid
    join mine m on m.oid = a.attrelid
    where n.contypid <> 0
    union all
    select m.oid, 'pg_catalog.pg_rewrite'::pg_catalog.regclass, w.oid,
        case m.relkind when 'v' then 'read' else 'write' end
    from pg_catalog.pg_rewrite w join mine m on m.oid = w.ev_class
    union all
    select m.oid, 'pg_catalog.pg_trigger'::pg_catalog.regclass, t.oid, 'write'
    from pg_catalog.pg_trigger t join mine m on m.oid = t.tgrelid where not t.tgisinternal
    union all
    select m.oid, 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid, 'write'
    from pg_catalog.pg_index i join mine m on m.oid = i.indrelid
    union all
    select m.oid, 'pg_catalog.pg_policy'::pg_catalog.regclass, y.oid, 'read'
    from pg_catalog.pg_policy y join mine m on m.oid = y.polrelid where m.relrowsecurity
),
need as materialized (
    select p.relation, p.runs, d.refclassid, d.refobjid
    from part p
    join pg_catalog.pg_depend d on d.classid = p.classid and d.objid = p.objid
    where d.refobjid >= 16384
),
call as (
    select n.relation, n.runs, n.refobjid as function from need n
    where n.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
    union
    select n.relation, n.runs, o.oprcode from need n
    join pg_catalog.pg_operator o on o.oid = n.refobjid
    where n.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass
),
columns as (
    select a.attrelid, pg_catalog.json_agg(pg_catalog.json_build_object(
        'attnum', a.attnum,
        'name', a.attname,
        'type', a.atttypid::bigint,
        'sql_type', pg_catalog.format_type(a.atttypid, a.atttypmod),
        'not_null', nullif(a.attnotnull, false),
        'default', case when a.attgenerated = '' then pg_catalog.pg_get_expr(f.adbin, f.adrelid) end,
        'generated', case when a.attgenerated <> '' then true end,
        'identity', nullif(a.attidentity, ''),
        'collate', case when a.attcollation <> t.typcollation then
            pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(c.collname)
        end,
        'nondeterministic', case when not c.collisdeterministic then true end
    ) order by a.attnum) as list
    from mine m
    join pg_catalog.pg_attribute a on a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped
    join pg_catalog.pg_type t on t.oid = a.atttypid
    left join pg_catalog.pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
    left join pg_catalog.pg_collation c on c.oid = a.attcollation
    left join pg_catalog.pg_namespace cn on cn.oid = c.collnamespace
    where m.relkind in ('r', 'p', 'v', 'm', 'f')
    group by a.attrelid
),
type as (
    select t.typname from pg_catalog.pg_type t
    left join mine m on m.oid = t.typrelid
    where t.typnamespace = pg_catalog.pg_my_temp_schema()
        and t.typelem = 0 and m.relkind is distinct from 'r'
)
select pg_catalog.json_build_object(
    'relations', (
        select pg_catalog.json_agg(pg_catalog.json_strip_nulls(pg_catalog.json_build_object(
            'oid', m.oid::bigint,
            'schema', 'pg_temp',
            'name', m.relname,
            'kind', m.relkind,
            'columns', c.list,
            'primary_key', k.conkey,
            'row_security', nullif(m.relrowsecurity, false)
        )))
        from mine m
        left join columns c on c.attrelid = m.oid
        left join pg_catalog.pg_constraint k on k.conrelid = m.oid and k.contype = 'p'
        where m.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    ),
    'indexes', (select pg_catalog.json_agg(relname) from mine where relkind in ('i', 'I')),
    'types', (select pg_catalog.json_agg(typname) from type),
    'calls', (
        select pg_catalog.json_agg(pg_catalog.json_build_array(c.relation::bigint, c.runs,
            case when p.pronamespace = pg_catalog.pg_my_temp_schema() then 0 else p.oid::bigint end))
        from call c join pg_catalog.pg_proc p on p.oid = c.function
    ),
    'uses', (
        select pg_catalog.json_agg(pg_catalog.json_build_array(n.relation::bigint, n.runs, n.refobjid::bigint))
        from need n
        where n.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
            and n.refobjid not in (select oid from mine)
    )
)
where pg_catalog.pg_my_temp_schema() <> 0";
