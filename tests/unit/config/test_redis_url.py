"""A Redis URL means here what it means to Go Machinery, and shows no password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.config.redis_url import RedisAddress, parse_address, redact
from machine.errors import ConfigError

HOST = (("127.0.0.1", 5672),)


def refusal(url: str, **options: object) -> str:
    """Return the text with which this URL is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_address(url, **options)
    return str(caught.value)


class TestOneServer:
    @pytest.mark.parametrize(
        ("url", "username", "password", "db"),
        [
            ("redis://127.0.0.1:5672", "", "", 0),
            ("redis://pwd@127.0.0.1:5672", "", "pwd", 0),
            ("redis://pwd@127.0.0.1:5672/2", "", "pwd", 2),
            ("redis://user:pwd@127.0.0.1:5672/2", "user", "pwd", 2),
            ("redis://user:pwd:with:colon@127.0.0.1:5672/2", "user", "pwd:with:colon", 2),
            ("redis://user:@127.0.0.1:5672/2", "user", "", 2),
            ("redis://:pwd@127.0.0.1:5672/2", "", "pwd", 2),
            ("redis://us%40er:p%2Fw%25@127.0.0.1:5672", "us@er", "p/w%", 0),
            ("redis://a@b@127.0.0.1:5672", "", "a@b", 0),
        ],
    )
    def test_user_info_is_read_as_machinery_reads_it(self, url, username, password, db):
        actual = parse_address(url)

        expected = RedisAddress(
            kind="single", hosts=HOST, username=username, password=password, db=db
        )
        assert expected == actual

    def test_rediss_is_encrypted(self):
        assert parse_address("rediss://h").tls is True
        assert parse_address("redis://h").tls is False

    def test_port_defaults_to_6379(self):
        assert parse_address("redis://h").hosts == (("h", 6379),)
        assert parse_address("redis://h:/1").hosts == (("h", 6379),)

    def test_ipv6_stands_in_brackets(self):
        assert parse_address("redis://pw@[::1]:6380/1").hosts == (("::1", 6380),)
        assert parse_address("redis://[fe80::1%eth0]").hosts == (("fe80::1%eth0", 6379),)

    @pytest.mark.parametrize("path", ["", "/", "/x", "/2x", "/x/2", "/9999999999"])
    def test_database_that_is_no_number_is_0(self, path):
        assert parse_address(f"redis://h{path}").db == 0

    def test_what_follows_the_database_is_ignored(self):
        assert parse_address("redis://h/3/x").db == 3

    def test_negative_database_is_refused(self):
        assert refusal("redis://h/-1") == (
            "Redis URL 'redis://h/-1' cannot be used: a database number is 0 or more"
        )


class TestRefusals:
    @pytest.mark.parametrize(
        "url", ["non_redis://127.0.0.1:5672", "", "127.0.0.1:6379", "REDIS://h"]
    )
    def test_other_schemes_are_refused(self, url):
        assert refusal(url) == (
            f"Redis URL '{url}' cannot be used: it must start with "
            "redis://, rediss://, redis+socket:// or unix://"
        )

    def test_missing_slashes_are_refused(self):
        assert "cannot be used: it must start with redis://" in refusal("redis:/")

    @pytest.mark.parametrize("url", ["redis://", "redis:///0", "redis://:6379", "redis://::1/0"])
    def test_host_is_needed(self, url):
        assert "expected host[:port] with a numeric port, and IPv6 in [brackets]" in refusal(url)

    @pytest.mark.parametrize("port", ["0", "65536"])
    def test_port_out_of_range_is_refused(self, port):
        assert refusal(f"redis://h:{port}") == (
            f"Redis URL 'redis://h:{port}' cannot be used: a port is a number from 1 to 65535"
        )

    def test_password_in_the_place_of_a_port_is_hidden(self):
        assert refusal("redis://user:s3cret") == (
            "Redis URL 'redis://user:***' cannot be used: "
            "expected host[:port] with a numeric port, and IPv6 in [brackets]"
        )

    @pytest.mark.parametrize("url", ["redis://s3/cret@h", "redis://s3?cret@h", "redis://s3#cret@h"])
    def test_special_characters_in_a_password_are_named(self, url):
        assert refusal(url) == (
            "Redis URL 'redis://***@h' cannot be used: "
            "write %2F, %3F, %23 for / ? # in a password; options go under 'redis:'"
        )

    def test_options_in_the_url_are_refused(self):
        assert "options go under 'redis:'" in refusal("redis://h/0?password=s3cret")
        assert "s3cret" not in refusal("redis://h/0?password=s3cret")

    @pytest.mark.parametrize("password", ["100%", "%zz", "a%2"])
    def test_lone_percent_sign_is_named(self, password):
        assert refusal(f"redis://{password}@h") == (
            "Redis URL 'redis://***@h' cannot be used: "
            "a percent sign in a user or password is written %25"
        )

    def test_escapes_that_are_not_utf_8_are_refused(self):
        assert refusal("redis://%ff@h") == (
            "Redis URL 'redis://***@h' cannot be used: "
            "the percent-escapes in user or password are not UTF-8"
        )

    def test_sentinels_and_cluster_exclude_each_other(self):
        assert refusal("redis://h", master_name="m", cluster=True) == (
            "Redis URL 'redis://h' cannot be used: it cannot name both sentinels and cluster "
            "nodes; unset one of the two settings"
        )


class TestLists:
    def test_list_is_a_cluster_whose_database_is_ignored(self):
        actual = parse_address("redis://h1:1,h2:2,h3/3")

        expected = RedisAddress(kind="cluster", hosts=(("h1", 1), ("h2", 2), ("h3", 6379)))
        assert expected == actual

    def test_list_with_a_master_name_is_sentinels(self):
        actual = parse_address("rediss://p:w%40@x@h1:1, h2/3", master_name="mymaster")

        expected = RedisAddress(
            kind="sentinel",
            hosts=(("h1", 1), ("h2", 26379)),
            password="p:w%40@x",
            db=3,
            tls=True,
        )
        assert expected == actual

    def test_single_host_with_a_master_name_is_a_sentinel(self):
        actual = parse_address("redis://user:pw@h/1", master_name="mymaster")

        assert (actual.kind, actual.hosts) == ("sentinel", (("h", 26379),))
        assert (actual.username, actual.password, actual.db) == ("user", "pw", 1)

    def test_single_host_in_cluster_mode_is_read_like_a_list(self):
        actual = parse_address("redis://a:b%40@h:1/2", cluster=True)

        assert RedisAddress(kind="cluster", hosts=(("h", 1),), password="a:b%40") == actual

    def test_password_before_a_later_address_is_refused(self):
        assert refusal("redis://s3@h1,cret@h2", master_name="m") == (
            "Redis URL 'redis://***@h2' cannot be used: "
            "the password stands once, before the first address, and without a comma"
        )

    @pytest.mark.parametrize(
        "url", ["redis://h1,redis://h2", "redis://h1,h2?db=1", "redis://h,i#x"]
    )
    def test_second_scheme_and_options_are_refused(self, url):
        assert "the scheme stands once, and options go under 'redis:'" in refusal(url)

    @pytest.mark.parametrize("url", ["redis://h1,,h2", "redis://h1,", "redis://h1/0,h2"])
    def test_malformed_address_in_a_list_is_refused(self, url):
        assert "expected host[:port]" in refusal(url)


class TestSockets:
    @pytest.mark.parametrize(
        ("url", "username", "password", "db"),
        [
            ("redis+socket:///tmp/redis.sock", "", "", 0),
            ("redis+socket://pwd@/tmp/redis.sock", "", "pwd", 0),
            ("redis+socket://user:pwd@/tmp/redis.sock", "user", "pwd", 0),
            ("redis+socket://pwd@/tmp/redis.sock:/2", "", "pwd", 2),
            ("redis+socket://:p%40@/tmp/redis.sock:/2", "", "p%40", 2),
            ("unix:///tmp/redis.sock", "", "", 0),
        ],
    )
    def test_socket_is_read_as_machinery_reads_it(self, url, username, password, db):
        actual = parse_address(url)

        expected = RedisAddress(
            kind="socket", path="/tmp/redis.sock", username=username, password=password, db=db
        )
        assert expected == actual

    def test_path_may_contain_an_at_sign(self):
        assert parse_address("redis+socket:///tmp/a@b.sock").path == "/tmp/a@b.sock"

    @pytest.mark.parametrize("url", ["redis+socket://", "redis+socket:///", "redis+socket://s@x"])
    def test_path_is_needed(self, url):
        assert refusal(url).endswith(
            "the form is redis+socket://[[user:]password@]/path/to.sock[:/db]"
        )

    def test_wrong_slashes_are_refused(self):
        assert "it must start with redis://" in refusal("redis+socket:/")


class TestRedaction:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("redis://user:pw@h:1/2", "redis://user:***@h:1/2"),
            ("redis://pw@h", "redis://***@h"),
            ("redis://:pw@h", "redis://:***@h"),
            ("redis://us er:pw@h", "redis://***@h"),
            ("redis://user:p w/?#@x@h", "redis://user:***@h"),
            ("redis://a:b@h1,h2", "redis://***@h1,h2"),
            ("redis+socket://u:p@/tmp/x.sock:/2", "redis+socket://u:***@/tmp/x.sock:/2"),
            ("redis+socket:///tmp/x.sock:/2", "redis+socket:///tmp/x.sock:/2"),
            ("redis://user:pw", "redis://user:***"),
            ("redis://[::1]:pw", "redis://[::1]:***"),
            ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
            ("redis://h/0?password=pw", "redis://h/0?***"),
            ("user:pw@h", "***@h"),
            ("user:pw", "user:***"),
            ("localhost:6379", "localhost:6379"),
            ("BOGUS", "BOGUS"),
            ("", ""),
            ("what? a=b: c", "what? a=b: c"),
            ("amqp://guest:guest@localhost:5672/", "amqp://guest:***@localhost:5672/"),
            ("redis://h:1/0 did not answer: broken", "redis://h:1/0 did not answer: broken"),
            (
                "tried redis://a:b@h, then redis://c:d@i: no",
                "tried redis://***@h, then redis://c:***@i:***",
            ),
        ],
    )
    def test_passwords_are_hidden(self, text, shown):
        assert redact(text) == shown

    def test_whole_hides_the_user_too(self):
        assert redact("redis://a:b@h", whole=True) == "redis://***@h"

    def test_repr_of_an_address_has_no_password(self):
        shown = repr(parse_address("redis://user:s3cret@h"))

        assert shown == (
            "RedisAddress(kind='single', hosts=(('h', 6379),), path='', username='user', "
            "db=0, tls=False)"
        )

    @given(before=st.text(max_size=7), after=st.text(max_size=8))
    def test_no_password_comes_through(self, before, after):
        url = f"redis://user:{before}S3CRET{after}@host:6379/0"

        assert "S3CRET" not in redact(url)
        assert "S3CRET" not in redact(f"cannot reach {url}")

    @given(st.text(), st.booleans(), st.sampled_from(["", "m"]))
    def test_parsing_any_text_gives_an_address_or_a_config_error(self, text, cluster, master_name):
        try:
            address = parse_address(f"redis://{text}", cluster=cluster, master_name=master_name)
        except ConfigError as error:
            assert str(error).startswith("Redis URL 'redis://")  # noqa: PT017 - or no error at all
        else:
            assert address.hosts
