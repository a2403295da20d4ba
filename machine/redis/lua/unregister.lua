#!lua flags=allow-oom
-- unregister.lua: take a worker that holds nothing off the roster of a queue.
--
-- What a blocking move has left in the landing list goes back to the head of
-- the queue, where a Go consumer finds it too.
--
-- KEYS[1]  workers  ZSET  worker id -> lease deadline, ms
-- KEYS[2]  held     HASH  claim id -> message, of this worker
-- KEYS[3]  hop      LIST  landing list
-- KEYS[4]  ready    LIST  the queue
-- ARGV[1]  worker   id of this incarnation
-- ARGV[2]  most     messages to move back
--
-- Returns  1 when it is off the roster, 0 when it still holds claims.
-- Cost     O(most).
for _ = 1, math.min(tonumber(ARGV[2]), redis.call("LLEN", KEYS[3])) do
  redis.call("LMOVE", KEYS[3], KEYS[4], "RIGHT", "LEFT")
end
if redis.call("HLEN", KEYS[2]) > 0 then
  return 0
end
redis.call("ZREM", KEYS[1], ARGV[1])
return 1
