"""Who must not be mailed: putting an address on the list and taking it off again."""

from __future__ import annotations

from sqlalchemy import text

from webapp.extensions import db

_PUT = text(
    """
    insert into suppression as known (email, reason, source, words)
    select cast(:email as text), :reason, :source, :words where not :of_a_customer or exists (
      select 1 from customer where customer.email = :email for share
    )
    on conflict (email) do update
    set reason = excluded.reason, at = now(), source = excluded.source, words = excluded.words
    where array_position(array['bounced', 'unsubscribed', 'complained'], excluded.reason)
      > array_position(array['bounced', 'unsubscribed', 'complained'], known.reason)
    returning 1
    """
)
WORDS_MAX = 1000


def put(email: str, reason: str, source: int | str, words: str = "") -> bool:
    """Let nobody mail this address any more, from the next window on. The caller commits.

    Who is on the list already stays with the first reason, unless the new one is stronger: complained, then
    unsubscribed, then bounced.

    :param email: normalised, as `customer.email` is.
    :param reason: `unsubscribed`, `bounced` or `complained`.
    :param source: the campaign's id, or `import`, `staff`, `api` or `relay`. What comes of a campaign is about one of
        its customers: should they have been erased at this moment, their address must not come back by this.
    :param words: what the server said, or whoever asked for it.
    :returns: whether that changed anything.
    """
    done = db.session.execute(
        _PUT,
        {
            "email": email,
            "reason": reason,
            "source": f"campaign {source}" if isinstance(source, int) else source,
            "words": words.replace("\0", "")[:WORDS_MAX],
            "of_a_customer": isinstance(source, int),
        },
    )
    return done.first() is not None
