"""Settings: defaults, then a config file, then --key=value, each checked. Nothing is executed.

The defaults are the assignments `name = value  # comment` at the top of a script, and the fields of a dataclass. A
config file is a list of `name = constant expression`. A value must be of its default's type, or of its annotation's.
A number must be finite and in the range with which its comment begins:

    beta1 = 0.9     # >= 0, < 1: both hold; of a list for every number in it
    log_scale = 0   # 0 or >= 2: one of them holds

    own, further, given = configure(__file__)   # in a script; exits with one clear line for a mistake
    python train.py config/demo_addition.py --max_iters=100 --num_loops=[4,6,8]
"""
import ast
import contextlib
import difflib
import functools
import inspect
import io
import math
import operator
import os
import re
import sys
import tokenize
from dataclasses import dataclass

import columns

BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
          ast.FloorDiv: operator.floordiv}
TYPES = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}
COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "": operator.eq}
NUMBER = r"(?:[<>]=? )?-?\d+(?:\.\d+)?(?:e-?\d+)?"
ALIASES = {"digits": "sizes"}  # other names of settings, where a script has the second and not the first
RANGE = re.compile(rf"({NUMBER}(?:(?:, | or ){NUMBER})*): ")


@contextlib.contextmanager
def open_text(path):
    """path opened for reading text as people save it: UTF-8, with a byte order mark or without. SystemExit with one
    line if it cannot be read, or is of another encoding."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            yield f
    except UnicodeDecodeError:
        raise SystemExit(f"{path} is not text in UTF-8: save it as UTF-8") from None
    except OSError as e:
        if e.filename not in (path, None):  # of another file
            raise
        raise SystemExit(f"{path} cannot be read: {e.strerror or e}") from None


@dataclass
class Setting:
    default: object
    kind: str       # as annotated: 'int', 'float | str', 'int | list[int]', ...
    comment: str

    @property
    def range(self):
        """The numbers that its comment allows, '>= 0, < 1' or '0 or >= 2'; '' if it says nothing."""
        found = RANGE.match(self.comment)
        return found[1] if found else ""


def constant(node):
    """The value of a constant expression, an ast node. ValueError if it is anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [constant(x) for x in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -number(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return BINARY[type(node.op)](number(node.left), number(node.right))
    raise ValueError(f"'{ast.unparse(node)}' is not a constant")


def number(node):
    value = constant(node)
    if type(value) not in (int, float):
        raise ValueError(f"'{ast.unparse(node)}' is not a number")
    return value


def comments(source):
    """Comment at the end of each line: {line: text}."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def read_settings(source):
    """The settings among the statements of a script or a class: {name: Setting}, in order."""
    body, top, found = ast.parse(source).body, [], {}
    if len(body) == 1 and isinstance(body[0], ast.ClassDef):
        body = body[0].body
    for node in body:
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            break  # settings stand at the top, before the first function and the call of configure
        top.append(node)
    # of the rest of a long script no comment is needed, and to look for them took longer than all else
    note = comments("".join(source.splitlines(True)[:top[-1].end_lineno])) if top else {}
    for node in top:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(target, ast.Name) or not target.id.islower() or getattr(node, "value", None) is None:
            continue
        try:
            default = constant(node.value)
        except ValueError:
            continue
        annotation = getattr(node, "annotation", None)
        kind = ast.unparse(annotation) if annotation else type(default).__name__
        found[target.id] = Setting(default, kind, note.get(node.lineno, ""))
    return found


@functools.cache
def own_settings(cls):
    """Those of a class without what it extends; to find its source, Python reads all of its file."""
    return read_settings(inspect.getsource(cls))


def class_settings(cls, names=None):
    """The settings of a dataclass and the dataclasses it extends; only `names`, if given."""
    found = {}
    for c in reversed(cls.__mro__[:-1]):
        found |= own_settings(c)
    return {k: s for k, s in found.items() if names is None or k in names}


def convert(value, kind):
    """value as the kind asks for it. ValueError if it does not fit."""
    kinds = [k.strip() for k in kind.split("|")]
    if type(value) is int and "float" in kinds and "int" not in kinds:
        if abs(value) > sys.float_info.max:
            raise ValueError(f"{str(value)[:20]}... is too large")
        return float(value)
    for k in kinds:
        if k.startswith("list") and isinstance(value, list) and all(type(x) is TYPES[k[5:-1]] for x in value):
            return value
        if type(value) is TYPES.get(k):
            return value
    raise ValueError(f"{value!r} is not of type {kind}")


def in_range(value, setting):
    """value, in which every number is finite and in the setting's range. ValueError if one is not."""
    for x in value if isinstance(value, list) else [value]:
        if type(x) not in (int, float):
            continue
        if type(x) is float and not math.isfinite(x):
            raise ValueError(f"{x} is not a finite number")
        if type(x) is int and abs(x) >= 2 ** 63:  # no tensor holds it
            raise ValueError(f"{str(x)[:20]}... is too large")
        for alternative in filter(None, setting.range.split(" or ")):
            bounds = [bound.rpartition(" ") for bound in alternative.split(", ")]
            if all(COMPARISONS[sign](x, float(limit)) for sign, _, limit in bounds):
                break
        else:
            if setting.range:
                raise ValueError(f"{x} is out of range; it must be {setting.range}")
    return value


def checked(value, setting):
    """value, of the kind and in the range of a setting. ValueError if it does not fit."""
    return in_range(convert(value, setting.kind), setting)


def parse_value(text, kind):
    """A value from the command line, as its kind asks for it; plain strings need no quotes."""
    if kind == "str":
        return text
    text = {"true": "True", "false": "False"}.get(text, text)
    try:
        value = constant(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError):
        value = text
    try:
        return convert(value, kind)
    except ValueError:
        return convert(text, kind)


def named(key, settings):
    """The setting that a key means."""
    return ALIASES[key] if key not in settings and ALIASES.get(key) in settings else key


def unknown(key, settings):
    near = difflib.get_close_matches(key, settings, 1)
    return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "; --help lists all keys")


def read_config(path, settings):
    """The settings of a config file, checked: {key: value}. SystemExit that names the line."""
    if not os.path.exists(path):
        raise SystemExit(f"{path} does not exist; the config files are in config/")
    with open_text(path) as f:
        text = f.read()
    try:
        body = ast.parse(text, path).body
    except (SyntaxError, ValueError) as e:
        raise SystemExit(f"{path}:{getattr(e, 'lineno', None) or 1}: {getattr(e, 'msg', e)}") from None
    given = {}
    for node in body:
        where = f"{path}:{node.lineno}: "
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            raise SystemExit(where + "a config file holds lines `name = constant` only")
        typed = node.targets[0].id
        key = named(typed, settings)
        if key not in settings:
            raise SystemExit(where + unknown(key, settings))
        try:
            given[key] = checked(constant(node.value), settings[key])
        except (ValueError, ArithmeticError) as e:
            raise SystemExit(f"{where}{typed}: {e}") from None
    return given


def read_arguments(argv, settings):
    """Config files and --key=value, the later one wins: {key: value}. SystemExit for a mistake."""
    given = {}
    for arg in argv:
        if not arg.startswith("--"):
            given |= read_config(arg, settings)
            continue
        typed, eq, text = arg[2:].partition("=")
        key = named(typed, settings)
        if key not in settings:
            raise SystemExit(f"--{typed}: " + unknown(key, settings))
        if not eq and settings[key].kind != "bool":
            raise SystemExit(f"{arg}: write it as --{typed}=value")
        try:
            given[key] = in_range(parse_value(text if eq else "True", settings[key].kind), settings[key])
        except ValueError as e:
            raise SystemExit(f"--{typed}: {e}") from None
    return given


def say_without_effect(*cases):
    """One line on stderr, if any key of the command line does nothing in this run. Those of config files may: a file
    serves several commands.

    cases: (whether they do nothing, why, *keys); of a key the first reason counts.
    """
    typed = [arg[2:].partition("=")[0] for arg in sys.argv[1:] if arg.startswith("--")]
    found = {}
    for idle, why, *keys in cases:
        for key in keys:
            for name in typed:
                if idle and key in (name, ALIASES.get(name)):
                    found.setdefault(name, why)
    if found:
        print("without effect: " + "; ".join(f"--{key} ({why})" for key, why in found.items()), file=sys.stderr)


def help_text(script, doc, groups):
    """Every key with its default, its range and its comment, the settings of `groups` {title: settings} in turn; and
    what the columns of the script's table mean."""
    lines = [(doc or "").strip(), "", f"usage: python {os.path.basename(script)} [config/file.py] [--key=value ...]"]
    for title, settings in groups.items():
        lines += ["", title]
        lines += [f"  --{f'{k}={s.default!r}':<32} {s.comment}".rstrip() for k, s in settings.items()]
    return "\n".join([*lines, *columns.lines_of(os.path.basename(script))])


def configure(script, groups=None, argv=None):
    """A script's settings, checked: (its own {key: value}, those of the further groups, the set of keys given).

    script: its path; groups: {title: {name: Setting}} of further settings, see class_settings.
    """
    with contextlib.suppress(AttributeError, OSError):  # what stands in for a stream may lack this
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding costs characters, not the run
    with open_text(script) as f:
        source = f.read()
    argv = sys.argv[1:] if argv is None else argv
    own, groups = read_settings(source), groups or {}
    settings = {k: s for group in (own, *groups.values()) for k, s in group.items()}
    if "-h" in argv or "--help" in argv:
        raise SystemExit(print(help_text(script, ast.get_docstring(ast.parse(source)), {"settings": own} | groups)))
    given = read_arguments(argv, settings)
    values = {k: given.get(k, s.default) for k, s in settings.items()}
    return {k: values[k] for k in own}, {k: v for k, v in values.items() if k not in own}, set(given)
