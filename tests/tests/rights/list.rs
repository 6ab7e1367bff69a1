//! The objects of ours on every shard, and who may use them, beside the table of docs/security.md.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};

use super::Cluster;

/// Name, and who has which right but the owner. A function of its owner's rights that everybody may
/// call begins with the check of the proof; functions have a search path of their own.
const LIST: &str = "
with grants as (
    select 'schema' as kind, n.oid, n.nspowner as owner, coalesce(n.nspacl, acldefault('n', n.nspowner)) as acl
    from pg_namespace n
    union all
    select 'relation', c.oid, c.relowner,
        coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::\"char\", c.relowner))
    from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    union all
    select 'function', p.oid, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_proc p
), given as (
    select g.kind, g.oid, string_agg(
        case a.grantee when 0 then '' else a.grantee::regrole::text || ' ' end
            || a.privilege_type || case when a.is_grantable then ' (again)' else '' end,
        ', ' order by a.grantee, a.privilege_type) as rights
    from grants g cross join lateral aclexplode(g.acl) a
    where a.grantee <> g.owner
    group by g.kind, g.oid
)
select 'schema ' || n.nspname, coalesce(g.rights, 'nobody')
from pg_namespace n left join given g on g.kind = 'schema' and g.oid = n.oid
where n.nspname ~ '^automator67'
union all
select c.oid::regclass::text, coalesce(g.rights, 'nobody')
from pg_class c left join given g on g.kind = 'relation' and g.oid = c.oid
where c.relnamespace in (select oid from pg_namespace where nspname ~ '^automator67')
    and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
union all
select p.oid::regprocedure::text, case
    when p.proconfig is null or not 'search_path=pg_catalog, pg_temp' = any (p.proconfig)
        then 'NO SEARCH PATH'
    when g.rights is null then 'nobody'
    when g.rights = 'EXECUTE' and not p.prosecdef then 'EXECUTE with their own rights'
    when g.rights = 'EXECUTE'
        and p.prosrc ~ format('\\mbegin\\s+perform automator67\\.check_proof\\(proof, ''%s''\\);', p.proname)
        then 'EXECUTE with the proof'
    else g.rights
end
from pg_proc p left join given g on g.kind = 'function' and g.oid = p.oid
where p.pronamespace in (select oid from pg_namespace where nspname ~ '^automator67')";

/// The table's lines: | `object` | where | who may what |.
fn listed() -> Result<BTreeMap<String, (String, String)>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let text = std::fs::read_to_string(path)?;
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, place, who] = cells[..] else {
            continue;
        };
        let Some(name) = name.strip_prefix('`').and_then(|it| it.strip_suffix('`')) else {
            continue;
        };
        all.insert(name.to_owned(), (place.to_owned(), who.to_owned()));
    }
    Ok(all)
}

pub fn compare(cluster: &Cluster) -> Result<()> {
    let mut found: BTreeMap<String, (String, String)> = BTreeMap::new();
    for shard in (0..3).rev() {
        let rows = cluster.owner(shard)?.rows(LIST)?;
        for row in rows {
            let [Some(name), Some(who)] = &row[..] else {
                continue;
            };
            // Of an index, whatever its number is.
            let name = name.replace("_1(", "_N(").replace("index_1", "index_N");
            let place = if shard == 0 { "home" } else { "every shard" };
            let known = found
                .entry(name.clone())
                .or_insert_with(|| (place.to_owned(), who.clone()));
            ensure!(known.1 == *who, "{name}: {known:?} and {who}");
        }
    }
    let listed = listed().context("docs/security.md")?;
    let differences: Vec<String> = found
        .iter()
        .filter(|(name, is)| listed.get(*name) != Some(is))
        .map(|(name, (place, who))| format!("| `{name}` | {place} | {who} |"))
        .chain(
            listed
                .keys()
                .filter(|name| !found.contains_key(*name))
                .map(|name| format!("not there: {name}")),
        )
        .collect();
    ensure!(
        differences.is_empty(),
        "docs/security.md should say:\n{}",
        differences.join("\n")
    );
    Ok(())
}
