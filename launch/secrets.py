"""What must not be written down: names that stand for secrets, and text with the secrets taken out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

MASK = "***"
# Words of a name, such as those of HF_TOKEN, --db-password or apiKey.
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
ALWAYS = frozenset(
    {"SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "APIKEY", "CREDENTIAL", "CREDENTIALS"}
    | {"AUTH", "AUTHORIZATION", "BEARER", "COOKIE", "COOKIES", "JWT", "PRIVATE", "PRESHARED", "PSK", "DSN"}
)
AT_THE_END = frozenset({"TOKEN", "KEY", "PASS", "PWD", "PAT"})
# Words before TOKEN, KEY or PASS that make it something else: a token of text, a key of a table, a pass over the data.
HARMLESS_BEFORE = frozenset(
    {"CLS", "PAD", "EOS", "BOS", "SEP", "MASK", "UNK", "END", "START", "NUM", "N", "MAX", "MIN", "PER"}
    | {"SORT", "GROUP", "PRIMARY", "FOREIGN", "PUBLIC", "FIRST", "SECOND", "SINGLE", "TWO", "ONE"}
    | {"FORWARD", "BACKWARD", "EACH", "NEXT", "OLD"}
)
SECRET_NAMES = frozenset({"PASS", "TOKEN", "KRB5_KTNAME"})
RECORDED = re.compile(
    r"(CUDA|NCCL|TORCH|TORCHINDUCTOR|GLOO|OMP|MKL|UCX|FI|SLURM)_\w+|PYTHON(HASHSEED|PATH|SAFEPATH)|LD_LIBRARY_PATH"
    r"|(LOCAL_|GROUP_|)(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|CONDA_(PREFIX|DEFAULT_ENV)|VIRTUAL_ENV|PATH|LANG|LC_\w+",
    re.ASCII,
)
# What stands before a name is looked at first: a long word without one must not be searched from each of its letters.
USERINFO = re.compile(r"(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\"]+@")
QUERY = re.compile(r"(?P<name>[?&][\w.-]*)=(?P<value>[^&#\s'\"]+)")
ASSIGNMENT = re.compile(
    r"(?<![\w.-])(?P<name>-*[A-Za-z_][\w.-]*)(?P<mark>['\"]?\s*[=:]\s*)"
    r"(?P<value>(?:Bearer|Basic)\s+\S+|'[^']*'|\"[^\"]*\"|[^\s,;'\"]+)"
)
# Tokens that look like themselves wherever they stand.
KNOWN = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|(AKIA|ASIA)[A-Z0-9]{16}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]+)"
)


def is_secret_name(name: str) -> bool:
    """Whether a variable or an option of that name holds a secret: HF_TOKEN and --api-key do, num_tokens does not."""
    name = name.lstrip("-")
    words = [word.upper() for word in WORD.findall(name)]
    if not words or name in ("PWD", "OLDPWD"):
        return False
    if ALWAYS.intersection(words) or name.upper() in SECRET_NAMES:
        return True
    if any(pair in (("CONNECTION", "STRING"), ("CONN", "STRING")) for pair in pairwise(words)):
        return True
    if words[-1] == "ID" and len(words) > 2:  # AWS_ACCESS_KEY_ID is half of a pair
        words = words[:-1] if words[-2] == "KEY" else words
    return len(words) > 1 and words[-1] in AT_THE_END and words[-2] not in HARMLESS_BEFORE


def mask(text: str) -> str:
    """`text` without passwords in URLs, well-known kinds of tokens, and values of names that stand for secrets."""
    text = USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    text = QUERY.sub(_masked_query, text)
    text = ASSIGNMENT.sub(_masked_assignment, text)
    return KNOWN.sub(MASK, text)


def _masked_query(match: re.Match[str]) -> str:
    name = match["name"]
    return f"{name}={MASK}" if is_secret_name(name) or name[1:].lower() in ("sig", "token", "key") else match[0]


def _masked_assignment(match: re.Match[str]) -> str:
    return f"{match['name']}{match['mark']}{MASK}" if is_secret_name(match["name"]) else match[0]


def mask_argv(argv: Sequence[str]) -> list[str]:
    """A command line without its secrets, also those that stand in the word after their option."""
    masked, hidden = [], False
    for word in argv:
        is_option = word.startswith("-")
        name, mark, _ = word.partition("=")
        whole = f"{name}={MASK}" if mark and is_secret_name(name) else mask(word)
        masked.append(MASK if hidden and not is_option else whole)
        hidden = is_option and not mark and (is_secret_name(word) or word in ("--key", "--pwd"))
    return masked


def secret_arguments(argv: Sequence[str]) -> list[str]:
    """The options of a command line that look like secrets, and what else would be masked, by name."""
    found = []
    masked = mask_argv(argv)
    for index, word in enumerate(argv):
        if masked[index] == word:
            continue
        after_option = index > 0 and masked[index] == MASK and argv[index - 1].startswith("-")
        found.append(argv[index - 1] if after_option else masked[index].split("=")[0] if "=" in word else "an argument")
    return list(dict.fromkeys(found))


def mask_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that explain a run, by allow-list, with their secrets masked; all others are left out."""
    return {
        name: MASK if is_secret_name(name) else mask(value)
        for name, value in sorted(environ.items())
        if RECORDED.fullmatch(name)
    }


def is_secret(name: str, value: str) -> bool:
    """Whether a variable holds a secret, by its name or by a password or a well-known kind of token in its value."""
    return is_secret_name(name) or bool(USERINFO.search(value) or KNOWN.search(value))


def secret_variables(environ: Mapping[str, str], kept: Iterable[str] = ()) -> list[str]:
    """Names of the variables that hold secrets, without those `kept`."""
    return sorted(name for name, value in environ.items() if name not in kept and is_secret(name, value))
