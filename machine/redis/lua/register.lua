#!lua flags=allow-oom
-- register.lua: put a worker on the roster of its queues.
--
-- KEYS[i]  workers  ZSET  worker id -> lease deadline, ms, one key for each queue
-- ARGV[1]  worker   id of this incarnation
-- ARGV[2]  lease    ms
--
-- Returns  the number of queues.
-- Cost     O(log workers) each.
local time = redis.call("TIME")
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
for i = 1, #KEYS do
  redis.call("ZADD", KEYS[i], string.format("%.0f", deadline), ARGV[1])
end
return #KEYS
