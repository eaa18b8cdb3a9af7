"""Bounce messages in the formats of common mail systems.

`{to}` is the envelope sender of our email, `{id}` its Message-ID and `{rcpt}` the address that did not accept it.
"""

from __future__ import annotations

POSTFIX = """\
Return-Path: <>
Delivered-To: {to}
Received: by mx.relay.example (Postfix) id 4F2B11C02A7; Sat, 02 May 2026 08:00:03 +0000 (UTC)
Date: Sat, 02 May 2026 08:00:03 +0000 (UTC)
From: MAILER-DAEMON@relay.example (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
To: {to}
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="4F2B11C02A7.1777708803/mx.relay.example"
Message-Id: <20260502080003.4F2B11C02A7@mx.relay.example>

This is a MIME-encapsulated message.

--4F2B11C02A7.1777708803/mx.relay.example
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is the mail system at host mx.relay.example.

<{rcpt}>: host mail.there.example[203.0.113.7] said: {status_reply}

--4F2B11C02A7.1777708803/mx.relay.example
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.relay.example
X-Postfix-Queue-ID: 4F2B11C02A7
X-Postfix-Sender: rfc822; {to}
Arrival-Date: Sat, 02 May 2026 08:00:01 +0000 (UTC)

Final-Recipient: rfc822; {rcpt}
Original-Recipient: rfc822;{rcpt}
Action: {action}
Status: {status}
Remote-MTA: dns; mail.there.example
Diagnostic-Code: smtp; {status_reply}

--4F2B11C02A7.1777708803/mx.relay.example
Content-Description: Undelivered Message Headers
Content-Type: text/rfc822-headers

Return-Path: <{to}>
From: Shop <offers@example.com>
To: Ada Lovelace <{rcpt}>
Subject: Summer
Message-ID: {id}

--4F2B11C02A7.1777708803/mx.relay.example--
"""

EXCHANGE = """\
From: postmaster@there.example
To: {to}
Date: Sat, 2 May 2026 08:00:03 +0000
Content-Type: multipart/report; report-type=delivery-status;
 boundary="_000_NDR_"
X-MS-Exchange-Message-Is-Ndr:
Content-Language: en-US
Message-ID: <ndr-1@there.example>
In-Reply-To: {id}
Subject: Undeliverable: Summer
Auto-Submitted: auto-replied
MIME-Version: 1.0

--_000_NDR_
Content-Type: multipart/alternative; differences=Content-Type; boundary="_001_NDR_"

--_001_NDR_
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: base64

RGVsaXZlcnkgaGFzIGZhaWxlZA==

--_001_NDR_
Content-Type: text/html; charset="utf-8"

<p>Delivery has failed to these recipients</p>
--_001_NDR_--

--_000_NDR_
Content-Type: message/delivery-status

Reporting-MTA: dns;EXCH01.there.example
Received-From-MTA: dns;mx.relay.example
Arrival-Date: Sat, 2 May 2026 08:00:02 +0000

Original-Recipient: rfc822;{rcpt}
Final-Recipient: rfc822;{rcpt}
Action: failed
Status: 5.1.10
Diagnostic-Code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup
X-Display-Name: Ada Lovelace

--_000_NDR_
Content-Type: message/rfc822

From: Shop <offers@example.com>
To: Ada <{rcpt}>
Subject: Summer
Message-ID: {id}

Hi Ada
--_000_NDR_--
"""

GMAIL = """\
Delivered-To: {to}
Return-Path: <>
From: Mail Delivery Subsystem <mailer-daemon@googlemail.com>
To: {to}
Auto-Submitted: auto-replied
Subject: Delivery Status Notification (Failure)
References: {id}
In-Reply-To: {id}
X-Failed-Recipients: {rcpt}
Content-Type: multipart/report; boundary="000000000000a1"; report-type=delivery-status

--000000000000a1
Content-Type: multipart/related; boundary="000000000000a2"

--000000000000a2
Content-Type: text/html; charset="UTF-8"
Content-Transfer-Encoding: quoted-printable

<p>Address not found</p>=20
--000000000000a2--
--000000000000a1
Content-Type: message/delivery-status

Reporting-MTA: dns; googlemail.com
Received-From-MTA: dns; {to}
Arrival-Date: Sat, 02 May 2026 01:00:02 -0700 (PDT)
X-Original-Message-ID: {id}

Final-Recipient: rfc822; {rcpt}
Action: failed
Status: 5.1.1
Remote-MTA: dns; gmail-smtp-in.l.google.com.
Diagnostic-Code: smtp; 550-5.1.1 The email account that you tried to reach does not exist. Please try
 550-5.1.1 double-checking the recipient's email address for typos or
 550 5.1.1 unnecessary spaces.
Last-Attempt-Date: Sat, 02 May 2026 01:00:03 -0700 (PDT)

--000000000000a1
Content-Type: message/rfc822

Message-ID: {id}
From: Shop <offers@example.com>
To: {rcpt}
Subject: Summer

Hi
--000000000000a1--
"""

EXIM = """\
Return-path: <>
Envelope-to: {to}
Received: from mailnull by mx.there.example with local (Exim 4.72) id 1wAbCd-0001Ab-2C; Sat, 02 May 2026 08:00:03 +0000
X-Failed-Recipients: {rcpt}
Auto-Submitted: auto-replied
From: Mail Delivery System <Mailer-Daemon@mx.there.example>
To: {to}
Subject: Mail delivery failed: returning message to sender

This message was created automatically by mail delivery software.

A message that you sent could not be delivered to one or more of its
recipients. This is a permanent error. The following address(es) failed:

  {rcpt}
    SMTP error from remote mail server after RCPT TO:<{rcpt}>:
    host mail.there.example [203.0.113.7]: 550 No such user here

------ This is a copy of the message, including all the headers. ------

From: Shop <offers@example.com>
To: Ada <{rcpt}>
Message-ID: {id}

Hi, 452 4.2.2 is not about this.
"""

QMAIL = """\
Return-Path: <>
Delivered-To: {to}
Received: (qmail 4711 invoked for bounce); 2 May 2026 08:00:03 -0000
Date: 2 May 2026 08:00:03 -0000
From: MAILER-DAEMON@there.example
To: {to}
Subject: failure notice

Hi. This is the qmail-send program at there.example.
I'm afraid I wasn't able to deliver your message to the following addresses.
This is a permanent error; I've given up. Sorry it didn't work out.

<{rcpt}>:
Sorry, no mailbox here by that name. (#5.1.1)

--- Below this line is a copy of the message.

Return-Path: <{to}>
Message-ID: {id}
To: {rcpt}

Hi
"""

COMPLAINT = """\
From: <abuse@provider.example>
Date: Sat, 02 May 2026 08:00:03 +0000
Subject: FW: Summer
To: abuse-box@example.com
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="part1_13d.2e68ed54"

--part1_13d.2e68ed54
Content-Type: text/plain; charset="US-ASCII"

This is an email abuse report for an email message received from IP 203.0.113.9.

--part1_13d.2e68ed54
Content-Type: message/feedback-report

Feedback-Type: {feedback}
User-Agent: SomeGenerator/1.0
Version: 1
Original-Mail-From: <redacted@example.com>
Original-Rcpt-To: <redacted>

--part1_13d.2e68ed54
Content-Type: message/rfc822

From: Shop <offers@example.com>
To: <redacted>
Subject: Summer
Message-ID: <redacted@example.com>
List-Unsubscribe: <{unsubscribe_url}>,
 <mailto:offers@example.com?subject=unsubscribe>

Spam Spam Spam
--part1_13d.2e68ed54--
"""

VACATION = """\
From: Ada <{rcpt}>
To: {to}
Subject: Out of office: Summer
Auto-Submitted: auto-replied
In-Reply-To: {id}
Content-Type: text/plain

I am away until 5.1.1. Write to <bob@example.com>: 550 5.1.1 is my favourite number.
"""

READ_RECEIPT = """\
From: Ada <{rcpt}>
To: {to}
Subject: Read: Summer
Content-Type: multipart/report; report-type=disposition-notification; boundary=x

--x
Content-Type: message/disposition-notification

Final-Recipient: rfc822; {rcpt}
Original-Message-ID: {id}
Disposition: automatic-action/MDN-sent-automatically; deleted
--x--
"""

UNSUBSCRIBE_REQUEST = """\
From: Ada <{rcpt}>
To: {to}
Subject: unsubscribe

"""
