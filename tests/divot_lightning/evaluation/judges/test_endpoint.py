"""An endpoint gets a bounded number of requests, in bounded time and size, and no message shows a secret."""

import json
import time

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.judges.endpoint import KEY_VARIABLE, MAX_BODY, EndpointReplier, Limits
from divot_lightning.evaluation.judges.judge import Judge
from divot_lightning.evaluation.judges.prompts import PROMPTS, OpenAnswer
from divot_lightning.evaluation.judges.replies import Verdict

SAME, OTHER = OpenAnswer("what ?", "a dog", "dog"), OpenAnswer("what ?", "a dog", "cat")
QUICK = {"pause": 0.01, "tries": 2, "concurrency": 1}


def judge_at(url, folder, *, model="m", decoding=None, **limits):
    return Judge(PROMPTS["yes_no"], EndpointReplier(url, model, decoding, Limits(**{"pause": 0.01, **limits})), folder)


def verdicts(judge, answers):
    return [verdict and verdict.right for verdict, _ in judge.judge(answers)]


def test_verdicts_come_in_the_order_of_the_answers(endpoint, tmp_path):
    assert verdicts(judge_at(endpoint.url, tmp_path), [SAME, OTHER, SAME]) == [True, False, True]
    path, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0)
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_the_same_is_never_asked_twice_in_this_run_or_the_next(endpoint, tmp_path):
    judge_at(endpoint.url, tmp_path).judge([SAME, OTHER, SAME])
    assert verdicts(judge_at(endpoint.url, tmp_path), [OTHER, SAME]) == [False, True]
    assert len(endpoint.requests) == 2
    judge_at(endpoint.url, tmp_path, model="another").judge([SAME])
    judge_at(endpoint.url, tmp_path, decoding={"temperature": 0.7}).judge([SAME])
    assert len(endpoint.requests) == 4


def test_decoding_is_sent_as_it_is_set_and_described(endpoint, tmp_path):
    decoding = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 800}
    judge = judge_at(endpoint.url, tmp_path, decoding=decoding)
    judge.judge([SAME])
    assert {name: endpoint.requests[0][1][name] for name in decoding} == decoding
    assert judge.describe()["decoding"] == decoding
    judge = judge_at(endpoint.url, tmp_path, decoding=dict.fromkeys(decoding))
    judge.judge([SAME])
    assert set(endpoint.requests[1][1]) == {"model", "messages"}


def test_no_more_requests_run_at_once_than_allowed(endpoint, tmp_path):
    answers = [OpenAnswer(f"question {number}", "a dog", "dog") for number in range(12)]
    assert all(verdicts(judge_at(endpoint.url, tmp_path, concurrency=3), answers))
    assert 1 < endpoint.most_at_once <= 3


def test_busy_endpoints_and_broken_replies_are_tried_again(endpoint, tmp_path):
    endpoint.script = [(429, {"Retry-After": "0"}, "later"), (503, {}, ""), (200, {}, "no json"), (200, {}, "{}")]
    assert verdicts(judge_at(endpoint.url, tmp_path), [SAME]) == [True]
    assert len(endpoint.requests) == 5


def raw(content):
    """Make the server write bytes as they are and hang up."""

    def write(handler):
        handler.wfile.write(content)
        handler.close_connection = True

    return write


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{'choices'", "RemoteProtocolError"),
        (b"nonsense\r\n\r\n", "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", "RemoteProtocolError"),
        (b"", "RemoteProtocolError"),
    ],
)
def test_replies_that_break_off_are_tried_again(endpoint, tmp_path, content, shown):
    endpoint.script = [raw(content)]
    assert verdicts(judge_at(endpoint.url, tmp_path), [SAME]) == [True]
    endpoint.script = [raw(content)] * 2
    with pytest.raises(UserError, match=rf"no answer in 2 tries \({shown}"):
        judge_at(endpoint.url, tmp_path, **QUICK).judge([OTHER])


def test_a_body_without_end_is_not_read_on(endpoint, tmp_path):
    written = []

    def flood(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(b"x" * MAX_BODY)
                written.append(1)
        except OSError:
            pass

    endpoint.script = [flood] * 2
    with pytest.raises(UserError, match=f"longer than {MAX_BODY} bytes"):
        judge_at(endpoint.url, tmp_path, **QUICK).judge([SAME])
    assert len(written) < 100


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_bytes_that_drip_do_not_outlast_the_timeout(endpoint, tmp_path, head):
    """Each byte comes well within the timeout: only the whole is too slow."""

    def drip(handler):
        handler.wfile.write(head)
        try:
            for _ in range(200):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    endpoint.script = [drip]
    with pytest.raises(UserError, match=r"no whole reply within 0\.3 s"):
        judge_at(endpoint.url, tmp_path, **{**QUICK, "tries": 1}, timeout=0.3).judge([SAME])


def test_an_endpoint_that_stays_busy_is_given_up_and_what_it_said_is_kept(endpoint, tmp_path):
    judge = judge_at(endpoint.url, tmp_path, **QUICK)
    judge.judge([SAME])
    endpoint.script = [(500, {}, "")] * 2
    with pytest.raises(UserError, match=r"no answer in 2 tries \(HTTP 500\)"):
        judge.judge([SAME, OTHER])
    assert verdicts(judge, [SAME, OTHER]) == [True, False]
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_request_that_is_refused_is_one_item_without_a_verdict(endpoint, tmp_path, status):
    answers = [OpenAnswer(f"question {number}", "a dog", "dog") for number in range(4)]
    endpoint.script = [(200, {}, None), (status, {}, '{"error": {"code": "content_filter"}}'), *[(200, {}, None)] * 2]
    endpoint.script += [(status, {}, "filtered")] * 2
    judge = judge_at(endpoint.url, tmp_path, concurrency=1)
    assert verdicts(judge, answers) == [True, None, True, True]
    assert verdicts(judge, answers) == [True] * 4  # it may be asked again later


def test_a_reply_of_null_is_not_kept(endpoint, tmp_path):
    null = json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "length"}]})
    endpoint.script = [(200, {}, null)] * 3
    assert judge_at(endpoint.url, tmp_path).judge([SAME]) == [(None, None)]
    assert judge_at(endpoint.url, tmp_path).judge([SAME]) == [(Verdict(True), "Yes")]
    assert len(endpoint.requests) == 4


def test_a_small_request_tells_beforehand_whether_the_endpoint_can_be_asked(endpoint, tmp_path):
    judge_at(endpoint.url, tmp_path).check()
    assert len(endpoint.requests) == 1
    endpoint.script = [(400, {}, "temperature is not supported")]
    with pytest.raises(UserError, match="refuses a small request: HTTP 400 temperature is not supported"):
        judge_at(endpoint.url, tmp_path).check()
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(UserError, match="no answer in 2 tries"):
        judge_at(endpoint.url, tmp_path, **QUICK).check()


def test_a_refusal_is_told_at_once_and_names_the_variable_of_the_key(endpoint, tmp_path):
    endpoint.script = [(401, {}, "bad key"), (404, {}, "no model m\n\x1b[31m")]
    with pytest.raises(UserError, match=f"HTTP 401\n.*{KEY_VARIABLE}"):
        judge_at(endpoint.url, tmp_path).judge([SAME])
    with pytest.raises(UserError, match=r"HTTP 404 no model m  \[31m$"):
        judge_at(endpoint.url, tmp_path).judge([SAME])
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_no_message_shows_what_is_secret(endpoint, tmp_path, monkeypatch, status):
    """The server sends back the header of the key, in the body and in the reason."""
    monkeypatch.setenv(KEY_VARIABLE, "s3cret-key")
    url = endpoint.url.replace("://", "://user:pass%20word@") + "?api-key=queried"

    def echo(handler):
        handler.send_response(status)
        handler.end_headers()
        reason = f"you sent {handler.headers['Authorization']}, {handler.path}, pass word, pass%20word, Bearer abc"
        handler.wfile.write(reason.encode())

    endpoint.script = [echo] * 3
    judge = judge_at(url, tmp_path, **QUICK)
    with pytest.raises(UserError) as raised:
        judge.check()
    endpoint.script.clear()
    judge_at(url, tmp_path).judge([SAME])
    files = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    for secret in ("s3cret", "pass word", "pass%20word", "queried", "abc"):
        assert secret not in str(raised.value)
        assert secret not in files + json.dumps(judge.describe())
    assert endpoint.keys[0] == "Bearer s3cret-key"
    assert endpoint.requests[0][0] == "/v1/chat/completions?api-key=queried"


def test_a_key_that_no_header_can_hold_is_refused_unseen(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "s3cret\n")  # as from a file: the end of the line is no part of it
    judge_at(endpoint.url, tmp_path).judge([SAME])
    assert endpoint.keys == ["Bearer s3cret"]
    monkeypatch.setenv(KEY_VARIABLE, "s3cr\u00e9t")
    with pytest.raises(UserError, match=KEY_VARIABLE) as raised:
        judge_at(endpoint.url, tmp_path)
    assert "s3cr" not in str(raised.value)


def test_a_password_in_the_url_is_sent_as_it_was_meant(endpoint, tmp_path):
    judge_at(endpoint.url.replace("://", "://user:pass%20word@"), tmp_path).judge([SAME])
    assert endpoint.keys == ["Basic dXNlcjpwYXNzIHdvcmQ="]


def test_the_key_does_not_follow_a_redirection(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    endpoint.script = [(302, {"Location": f"{endpoint.url}/elsewhere"}, "")]
    with pytest.raises(UserError, match="HTTP 302"):
        judge_at(endpoint.url, tmp_path).judge([SAME])
    assert len(endpoint.requests) == 1


def test_requests_are_bounded(endpoint, tmp_path):
    with pytest.raises(UserError, match="sent 1 requests"):
        judge_at(endpoint.url, tmp_path, max_requests=1, concurrency=1).judge([SAME, OTHER])
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("url", "limits", "shown"),
    [
        ("ftp://x", {}, "'ftp://x'"),
        ("ftp://me:hidden@x/?k=hidden", {}, "'ftp://x/'"),
        ("http://[x", {}, "cannot be read"),
        ("http://x:port", {}, "cannot be read"),
        ("nothing", {}, "'nothing'"),
    ],
)
def test_wrong_settings_are_named(url, limits, shown):
    with pytest.raises(UserError, match=shown.replace("[", r"\[")) as raised:
        EndpointReplier(url, "m", limits=Limits(**limits))
    assert "hidden" not in str(raised.value)


def test_it_can_be_asked_where_an_event_loop_runs_already(endpoint, tmp_path):
    """As in a notebook."""
    import asyncio

    async def cell():
        return verdicts(judge_at(endpoint.url, tmp_path), [SAME])

    assert asyncio.run(cell()) == [True]
