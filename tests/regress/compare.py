"""Whether two servers answered a statement alike, and what a statement touches."""

import re
from collections import Counter
from dataclasses import dataclass, field

import pglast
from pglast import ast, enums, visitors

FIRST_USER_OID = 16384  # types from here on have different OIDs on two servers (transam.h)
NUMBER = re.compile(r"^-?\d+\.\d+(e[+-]?\d+)?$|^-?\d(\.\d+)?e[+-]?\d+$")
WHOLE = re.compile(r"^-?\d+$")


def difference(ours, theirs):
    """None, or (kind, detail); kinds "order" and "float" are those that rows have in another order,
    or that are equal but for the last digits."""
    if len(ours) != len(theirs):
        return ("results", f"{len(ours)} results against {len(theirs)}")
    soft = None
    for one, other in zip(ours, theirs):
        found = difference_of_one(one, other)
        if found and found[0] not in ("order", "float"):
            return found
        soft = soft or found
    return soft


def difference_of_one(one, other):
    if one.kind != other.kind:
        return ("kind", f"{one.kind} against {other.kind}")
    if one.tag != other.tag:
        return ("tag", f"{one.tag!r} against {other.tag!r}")
    if [name for name, _ in one.columns] != [name for name, _ in other.columns]:
        return ("columns", f"{one.columns!r} against {other.columns!r}")
    for (_, left), (_, right) in zip(one.columns, other.columns):
        if left != right and min(left, right) < FIRST_USER_OID:
            return ("types", f"{one.columns!r} against {other.columns!r}")
    if one.rows is None or one.rows == other.rows:
        return None
    return difference_of_rows(one.rows, other.rows)


def difference_of_rows(rows, others):
    count = lambda rows: Counter(tuple("\0" if v is None else v for v in row) for row in rows)
    left, right = count(rows), count(others)
    if left == right:
        return ("order", "the same rows in another order")
    only_left, only_right = list((left - right).elements()), list((right - left).elements())
    pairs = list(zip(sorted(only_left), sorted(only_right)))
    close = lambda one, other: len(one) == len(other) and all(map(near, one, other))
    if len(only_left) == len(only_right) and all(close(*pair) for pair in pairs):
        return ("float", f"last digits: {pairs[:2]!r}")
    sizes = f"({len(rows)} and {len(others)} rows)"
    return ("rows", f"only there: {only_left[:3]!r}; only here: {only_right[:3]!r} {sizes}")


def near(one, other):
    if one == other:
        return True
    floats = [NUMBER.match(value) for value in (one, other)]
    if not any(floats) or not all(f or WHOLE.match(v) for f, v in zip(floats, (one, other))):
        return False
    left, right = float(one), float(other)
    return abs(left - right) <= max(1e-14, 1e-9 * max(abs(left), abs(right)))


# Names of catalogs and functions whose answer is of one server.
CATALOG_NAME = re.compile(
    r"(pg_(?!lsn|snapshot|typeof|sleep|input)|information_schema|has_|to_reg|txid|inet_"
    r"|current_setting|obj_desc|col_desc|shobj)"
)
CATALOG_WORD = re.compile(
    r"\b(ctid|tableoid|xmin|xmax|cmin|reg(class|proc|type|role)|information_schema"
    r"|pg_(get|catalog|stat|class|attr|constr|index|trig|type|proc|views|rules|policies|roles"
    r"|namespace|relation|table_|locks|cursors|prepared)\w*)\b"
)


@dataclass
class Statement:
    """What the last statement of a text is."""

    kind: str = "?"  # the tree's node
    names: set = field(default_factory=set)  # of relations, functions, types, roles it mentions
    sorted: bool = False
    creates: object = None  # the RangeVar of a table that it makes
    reads_catalog: bool = False


class Names(visitors.Visitor):
    def __init__(self):
        self.found = set()

    def visit_RangeVar(self, ancestors, node):
        self.found.add(node.relname)

    def visit_FuncCall(self, ancestors, node):
        self.found.add(node.funcname[-1].sval)

    def visit_TypeName(self, ancestors, node):
        if node.names:
            self.found.add(node.names[-1].sval)


NAMED_BY_LIST = ("funcname", "defnames", "domainname", "typeName", "trigname", "rulename", "objname")
NAMED_BY_TEXT = NAMED_BY_LIST + (
    "role", "schemaname", "name", "portalname", "idxname", "policy_name", "conname", "extname",
)  # fmt: skip


def look_at(sql):
    try:
        tree = pglast.parse_sql(sql)
    except pglast.Error:
        return Statement(names=set(re.findall(r"[a-z_][a-z0-9_]{3,}", sql.lower())))
    if not tree:
        return Statement("empty")
    node = tree[-1].stmt
    names = Names()
    names(tree)
    names = names.found | names_of(node)
    found = Statement(type(node).__name__, names)
    catalog = any(CATALOG_NAME.match(name or "") for name in names)
    found.reads_catalog = catalog or bool(CATALOG_WORD.search(sql))
    if isinstance(node, ast.SelectStmt):
        found.sorted = bool(node.sortClause)
        if node.intoClause:
            found.kind, found.creates = "SelectInto", node.intoClause.rel
    elif isinstance(node, ast.CreateTableAsStmt):
        if node.objtype == enums.ObjectType.OBJECT_TABLE:
            found.creates = node.into.rel
    elif isinstance(node, ast.CreateStmt) and not node.partbound:
        found.creates = node.relation
    elif isinstance(node, ast.FetchStmt):
        found.sorted = True
    return found


def names_of(node):
    names = set()
    for attribute in NAMED_BY_TEXT:
        value = getattr(node, attribute, None)
        if isinstance(value, str):
            names.add(value)
        elif attribute in NAMED_BY_LIST and isinstance(value, tuple) and value:
            names.add(getattr(value[-1], "sval", None))
    return names - {None}
