#!lua flags=allow-oom
-- unpark.lua: make messages that were put aside due now, for a worker that knows their tasks.
--
-- KEYS[1]  parked   HASH  sha1 of message -> how often it was put aside
-- KEYS[2]  delayed  ZSET  message -> due, Unix ns
-- ARGV[i]  message  as it stands in the delayed set
--
-- Returns  how many are due now that were put aside until later.
-- Cost     O(log delayed) each.
local time = redis.call("TIME")
local now_ns, count = string.format("%.0f000", time[1] * 1e6 + time[2]), 0
for i = 1, #ARGV do
  local digest = redis.sha1hex(ARGV[i])
  -- Whoever moved it to its queue meanwhile leaves the count to the next time it is put aside.
  if redis.call("HEXISTS", KEYS[1], digest) == 1 and redis.call("ZSCORE", KEYS[2], ARGV[i]) then
    redis.call("ZADD", KEYS[2], "XX", "LT", now_ns, ARGV[i])
    redis.call("HDEL", KEYS[1], digest)
    count = count + 1
  end
end
return count
