#!lua flags=allow-oom
-- purge_dead.lua: delete dead letters for good.
--
-- KEYS[1]  dlq     HASH  dead letter id -> envelope
-- KEYS[2]  dlq:ix  ZSET  dead letter id -> ms
-- ARGV[i]  letter  ids
--
-- Returns  how many were deleted.
-- Cost     O(log dead) each.
local count = 0
for i = 1, #ARGV do
  count = count + redis.call("HDEL", KEYS[1], ARGV[i])
  redis.call("ZREM", KEYS[2], ARGV[i])
end
return count
