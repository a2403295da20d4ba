#!lua
-- replay.lua: put dead letters back at the tail of their queue, with a clean slate.
--
-- KEYS[1]   dlq      HASH  dead letter id -> envelope
-- KEYS[2]   dlq:ix   ZSET  dead letter id -> ms
-- KEYS[3]   redel    HASH  sha1 of message -> workers that died holding it
-- KEYS[4]   parked   HASH  sha1 of message -> how often it was put aside
-- KEYS[5]   ready    LIST  the queue
-- ARGV[2i-1] letter  id
-- ARGV[2i]   payload the message in it
--
-- Returns  how many were put back.
-- Cost     O(log dead) each.
local count = 0
for i = 1, #ARGV / 2 do
  if redis.call("HDEL", KEYS[1], ARGV[2 * i - 1]) == 1 then
    local digest = redis.sha1hex(ARGV[2 * i])
    redis.call("ZREM", KEYS[2], ARGV[2 * i - 1])
    redis.call("HDEL", KEYS[3], digest)
    redis.call("HDEL", KEYS[4], digest)
    redis.call("RPUSH", KEYS[5], ARGV[2 * i])
    count = count + 1
  end
end
return count
