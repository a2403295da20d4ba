#!lua flags=allow-oom
-- heartbeat.lua: renew the leases of workers that are registered or still hold something.
--
-- KEYS[1]    workers  ZSET  worker id -> lease deadline, ms
-- KEYS[1+i]  held     HASH  claim id -> message, of worker i
-- ARGV[1]    lease    ms
-- ARGV[1+i]  worker   id of worker i
--
-- Returns  the number of claims each holds, -1 for a worker that is lost.
-- Cost     O(log workers) each.
local time = redis.call("TIME")
local deadline = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1])
local counts = {}
for i = 1, #ARGV - 1 do
  local held = redis.call("HLEN", KEYS[1 + i])
  if held > 0 or redis.call("ZSCORE", KEYS[1], ARGV[1 + i]) then
    redis.call("ZADD", KEYS[1], deadline, ARGV[1 + i])
    counts[i] = held
  else
    counts[i] = -1
  end
end
return counts
