//! Types whose binary format means the same on every server.
//!
//! User-defined types have another OID on every server, and arrays, records and ranges carry the
//! OIDs of what they hold; `regclass` and its like are OIDs of objects. Built-in types keep their
//! OIDs forever (`src/include/catalog/pg_type.dat`).

use std::collections::HashMap;

/// Whether values of the type travel in binary between any two servers. Domains count as what
/// they are made of.
pub(super) fn is_portable(domains: &HashMap<u32, u32>, type_oid: u32) -> bool {
    let mut base = type_oid;
    // A domain over a domain ...: bounded, as a malformed document could go in circles.
    for _ in 0..=domains.len() {
        match domains.get(&base) {
            Some(next) => base = *next,
            None => return PORTABLE.binary_search(&base).is_ok(),
        }
    }
    false
}

/// Built-in types that have a binary format without OIDs of other objects, and their arrays.
/// Sorted.
#[rustfmt::skip]
const PORTABLE: &[u32] = &[
    // bool bytea char name int8 int2 int2vector int4 text oid tid xid cid oidvector
    16, 17, 18, 19, 20, 21, 22, 23, 25, 26, 27, 28, 29, 30,
    // json xml xml[] json[] xid8[]
    114, 142, 143, 199, 271,
    // point lseg path box polygon line line[]
    600, 601, 602, 603, 604, 628, 629,
    // cidr cidr[] float4 float8 circle circle[] macaddr8 macaddr8[] money money[] macaddr inet
    650, 651, 700, 701, 718, 719, 774, 775, 790, 791, 829, 869,
    // bool[] bytea[] char[] name[] int2[] int2vector[] int4[] text[]
    1000, 1001, 1002, 1003, 1005, 1006, 1007, 1009,
    // tid[] xid[] cid[] oidvector[] bpchar[] varchar[] int8[] point[] lseg[] path[] box[]
    1010, 1011, 1012, 1013, 1014, 1015, 1016, 1017, 1018, 1019, 1020,
    // float4[] float8[] polygon[] oid[] macaddr[] inet[] bpchar varchar
    1021, 1022, 1027, 1028, 1040, 1041, 1042, 1043,
    // date time timestamp timestamp[] date[] time[] timestamptz timestamptz[] interval interval[]
    1082, 1083, 1114, 1115, 1182, 1183, 1184, 1185, 1186, 1187,
    // numeric[] timetz timetz[] bit bit[] varbit varbit[] numeric
    1231, 1266, 1270, 1560, 1561, 1562, 1563, 1700,
    // txid_snapshot[] uuid uuid[] txid_snapshot pg_lsn pg_lsn[]
    2949, 2950, 2951, 2970, 3220, 3221,
    // tsvector tsquery tsvector[] tsquery[] jsonb jsonb[]
    3614, 3615, 3643, 3645, 3802, 3807,
    // int4range numrange tsrange tstzrange daterange int8range, each with its array
    3904, 3905, 3906, 3907, 3908, 3909, 3910, 3911, 3912, 3913, 3926, 3927,
    // jsonpath jsonpath[]
    4072, 4073,
    // int4multirange nummultirange tsmultirange tstzmultirange datemultirange int8multirange
    4451, 4532, 4533, 4534, 4535, 4536,
    // pg_snapshot pg_snapshot[] xid8
    5038, 5039, 5069,
    // arrays of the multiranges
    6150, 6151, 6152, 6153, 6155, 6157,
];
