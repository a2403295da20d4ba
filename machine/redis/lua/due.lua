#!lua flags=no-writes
-- due.lua: show the delayed messages that are due, earliest first.
--
-- KEYS[1]  delayed  ZSET  message -> due, Unix ns
-- ARGV[1]  most     messages
--
-- Returns  the messages; they stay where they are.
-- Cost     O(log delayed + most).
local time = redis.call("TIME")
local now = string.format("%.0f000", time[1] * 1e6 + time[2])
return redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", now, "LIMIT", 0, ARGV[1])
