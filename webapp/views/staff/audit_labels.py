"""Labels of the actions and details in the audit log."""

from __future__ import annotations

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

ACTION_LABELS = {
    "api_key.created": _l("API key created"),
    "api_key.revoked": _l("API key revoked"),
    "audience.created": _l("Audience created"),
    "audience.renamed": _l("Audience renamed"),
    "audit.exported": _l("Audit log exported"),
    "bounces.taken": _l("Bounces reported"),
    "campaign.cancelled": _l("Campaign cancelled"),
    "campaign.exported": _l("Recipients exported"),
    "campaign.launched": _l("Campaign launched"),
    "campaign.left_uncertain": _l("Uncertain emails dismissed"),
    "campaign.not_started": _l("Scheduled campaign not launched"),
    "campaign.paused": _l("Campaign paused"),
    "campaign.resumed": _l("Campaign resumed"),
    "campaign.scheduled": _l("Campaign scheduled"),
    "campaign.sent_again": _l("Emails resent"),
    "campaign.taken_back": _l("Campaign returned to draft"),
    "customer.changed": _l("Customer edited"),
    "customer.created": _l("Customer created"),
    "customer.erased": _l("Customer erased"),
    "customer.personal_data_exported": _l("Personal data exported"),
    "customer.subscribed_again": _l("Customer subscribed again"),
    "customer.unsubscribed": _l("Customer unsubscribed"),
    "customers.exported": _l("Customers exported"),
    "customers.import": _l("Customer import started"),
    "customers.refused_rows_exported": _l("Rejected rows exported"),
    "identity.linked": _l("Account at the sign-in provider linked"),
    "identity.unlinked": _l("Account at the sign-in provider unlinked"),
    "invitation.created": _l("Invitation created"),
    "invitation.withdrawn": _l("Link revoked"),
    "key.renewed": _l("Signing key rotated"),
    "key.retired": _l("Signing key version revoked"),
    "mail.saved": _l("Email saved"),
    "offer.changed": _l("Offer edited"),
    "offer.code_closed": _l("Code closed"),
    "offer.code_renewed": _l("Code replaced"),
    "offer.code_reopened": _l("Code reopened"),
    "offer.created": _l("Offer created"),
    "offer.paused": _l("Offer paused"),
    "offer.resumed": _l("Offer resumed"),
    "passkey.added": _l("Passkey added"),
    "passkey.refused": _l("Passkey refused: it may have been copied"),
    "passkey.removed": _l("Passkey removed"),
    "password.changed": _l("Password changed"),
    "password.confirmed": _l("Password confirmed"),
    "password.link_created": _l("Password reset link created"),
    "password.reset": _l("Password reset"),
    "password.reset_requested": _l("Password reset requested"),
    "recovery_code.used": _l("Recovery code used"),
    "recovery_codes.created": _l("Recovery codes created"),
    "redemption.entered": _l("Redemption entered"),
    "redemption.undone": _l("Redemption undone"),
    "redemptions.exported": _l("Redemptions exported"),
    "second_factor.confirmed": _l("Second factor confirmed"),
    "second_factor.reset": _l("Two-step verification reset"),
    "shop.saved": _l("Shop saved"),
    "staff.disabled": _l("User disabled"),
    "staff.enabled": _l("User enabled"),
    "staff.erased": _l("User erased"),
    "staff.joined": _l("Invitation accepted"),
    "staff.profile_changed": _l("Profile changed"),
    "staff.role_changed": _l("Role changed"),
    "staff.session_ended": _l("Session ended"),
    "staff.sessions_ended": _l("Sessions ended"),
    "staff.signed_in": _l("Signed in"),
    "staff.signed_out": _l("Signed out"),
    "suppression.added": _l("Added to suppression list"),
    "suppression.lifted": _l("Removed from suppression list"),
    "suppressions.exported": _l("Suppression list exported"),
    "suppressions.import": _l("Suppression list import started"),
    "totp.added": _l("Authenticator app added"),
    "totp.removed": _l("Authenticator app removed"),
}
# The groups of actions: the first part of an action without a plural s.
_GROUP_LABELS = {
    "api_key": _l("API keys"),
    "audience": _l("Audiences"),
    "audit": _l("Audit log"),
    "bounce": _l("Bounces"),
    "campaign": _l("Campaigns"),
    "customer": _l("Customers"),
    "invitation": _l("Invitations"),
    "key": _l("Signing keys"),
    "mail": _l("Emails"),
    "offer": _l("Offers"),
    "oidc": _l("OpenID Connect"),
    "passkey": _l("Passkeys"),
    "password": _l("Passwords"),
    "recovery_code": _l("Recovery codes"),
    "redemption": _l("Redemptions"),
    "second_factor": _l("Two-step verification"),
    "shop": _l("Shop"),
    "staff": _l("Users"),
    "suppression": _l("Suppression list"),
    "totp": _l("Authenticator apps"),
}
_DETAIL_LABELS = {
    "at": _l("launch time"),
    "before": _l("previously"),
    "left_out": _l("not resent"),
    "mails": _l("emails"),
    "was": _l("previously"),
}
# The fields of the shop, where the form has another label than their names.
_FIELD_LABELS = {
    "address": _l("postal address"),
    "button_words": _l("text of the button"),
    "link_words": _l("text before the link address"),
    "locale": _l("language"),
    "reason": _l("reason for the email"),
    "reply_to": _l("reply-to address"),
    "unsubscribe_words": _l("text of the unsubscribe link"),
}


def action_label(action: str) -> str:
    """Return the label of an action; the action itself if it has none, as in entries of an earlier version."""
    return str(ACTION_LABELS.get(action, action))


def group_labels() -> dict[str, str]:
    """Return the labels of the groups of actions, by group."""
    groups = {action.partition(".")[0].rstrip("s") for action in ACTION_LABELS}
    return {group: str(_GROUP_LABELS.get(group) or group.replace("_", " ").capitalize()) for group in groups}


def detail_label(name: str) -> str:
    """Return the label of a detail, derived from its name if there is no other."""
    return str(_DETAIL_LABELS.get(name) or name.replace("_", " "))


def format_detail(value: object) -> str:
    """Format the value of a detail, which is any JSON value, as plain text.

    In an object, as of `shop.saved`, a list of two values is the value before and after the change.
    """
    if isinstance(value, dict):
        return "; ".join(_format_field(name, item) for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(format_detail(item) for item in value)
    if value is None:
        return str(_("none"))
    if isinstance(value, bool):
        return str(_("yes") if value else _("no"))
    return str(value)


def _format_field(name: str, value: object) -> str:
    label = str(_FIELD_LABELS.get(name) or detail_label(name))
    if isinstance(value, list) and len(value) == 2:
        before, now = (_("“%(text)s”", text=text) if (text := format_detail(item)) else _("empty") for item in value)
        return str(_("%(field)s: %(before)s → %(now)s", field=label, before=before, now=now))
    return f"{label}: {format_detail(value)}"
