#!lua flags=allow-oom
-- park.lua: put messages nobody here can run aside, unchanged, for 1, 2, 4 ... 60 s.
--
-- KEYS[1]  held     HASH  claim id -> message, of the worker that claimed them
-- KEYS[2]  parked   HASH  sha1 of message -> how often it was put aside; forgotten after an hour
-- KEYS[3]  delayed  ZSET  message -> due, Unix ns
-- ARGV[i]  claim    ids
--
-- Returns  a code for each claim: 1 parked, 0 not ours.
-- Cost     O(log delayed) each.
local time = redis.call("TIME")
local now_us, codes = time[1] * 1e6 + time[2], {}
for i = 1, #ARGV do
  local message = redis.call("HGET", KEYS[1], ARGV[i])
  if message then
    local times = redis.call("HINCRBY", KEYS[2], redis.sha1hex(message), 1)
    redis.call("EXPIRE", KEYS[2], 3600)
    local due_us = now_us + 1e6 * math.min(60, 2 ^ math.min(times - 1, 6))
    redis.call("ZADD", KEYS[3], string.format("%.0f000", due_us), message)
    redis.call("HDEL", KEYS[1], ARGV[i])
  end
  codes[i] = message and 1 or 0
end
return codes
