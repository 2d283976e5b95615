"""Changes of keys on a Valkey server that depend on what was read before. Imports no torch.

They are one script, which a server runs alone. WATCH and EXEC would not do on a cluster: its client may connect anew
between them, without the watch, and overwrite what others have written meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """Change of one key, unless its content is not `before` any more, or the set of the script has `member`.

    Attributes:
        before: content that the change was made from; None for no key, `ANY` for whatever it is.
        action: `set`, `delete`, or `append` to a content whose first bytes change.
        value: new content; for `append` the new first bytes (`HEADER_BYTES`) and the bytes at the end.
    """

    key: str
    before: bytes | str | None
    action: str
    value: bytes | str = b""
    member: str = ""


# Content before an edit that need not be compared. Bytes at the beginning of a content that grows.
ANY, HEADER_BYTES = "*", 5
# Answers of `SWAP` for each edit.
CHANGED, DONE, REFUSED = 0, 1, 2
# All edits, or none if one of the contents has changed. KEYS: a set, and the key of each edit. ARGV: member, digest of
# the content before, action and value of each.
SWAP = f"""
local answers, is_same = {{}}, true
for i = 2, #KEYS do
  local at = 4 * (i - 2)
  local answer = {DONE}
  if ARGV[at + 1] ~= '' and redis.call('SISMEMBER', KEYS[1], ARGV[at + 1]) == 1 then
    answer = {REFUSED}
  elseif ARGV[at + 2] ~= '{ANY}' then
    local held = redis.call('GET', KEYS[i])
    if ARGV[at + 2] ~= (held and redis.sha1hex(held) or '') then
      answer = {CHANGED}
      is_same = false
    end
  end
  answers[i - 1] = answer
end
if not is_same then return answers end
for i = 2, #KEYS do
  local action, value = ARGV[4 * (i - 2) + 3], ARGV[4 * (i - 2) + 4]
  if answers[i - 1] ~= {DONE} then
  elseif action == 'append' then
    redis.call('SETRANGE', KEYS[i], 0, string.sub(value, 1, {HEADER_BYTES}))
    redis.call('APPEND', KEYS[i], string.sub(value, {HEADER_BYTES + 1}))
  elseif action == 'set' then
    redis.call('SET', KEYS[i], value)
  else
    redis.call('DEL', KEYS[i])
  end
end
return answers
"""


def arguments(edits: Sequence[Edit], members: str) -> list[bytes | str | int]:
    """Return the arguments of `SWAP`. `members` is the key of the set, on the node of the other keys."""
    words: list[bytes | str | int] = [len(edits) + 1, members, *(one.key for one in edits)]
    for one in edits:
        before = one.before or b""
        digest = before if isinstance(before, str) else hashlib.sha1(before).hexdigest() if before else ""
        words += [one.member, digest, one.action, one.value]
    return words
