#!lua flags=allow-oom
-- promote.lua: move due messages to the queues they name; bury those that name none.
--
-- KEYS[1]     delayed   ZSET  message -> due, Unix ns
-- KEYS[2]     dlq       HASH  dead letter id -> envelope
-- KEYS[3]     dlq:ix    ZSET  dead letter id -> ms
-- KEYS[3+i]   ready     LIST  where message i goes
-- ARGV[3i-2]  message   bytes, exactly as they are in delayed
-- ARGV[3i-1]  letter    id of its dead letter, "" to queue it
-- ARGV[3i]    envelope  of its dead letter
--
-- Returns  a code for each message: 1 moved or buried, 0 somebody else did it, -1 not a list.
-- Cost     O(log delayed) each.
local codes = {}
for i = 1, #KEYS - 3 do
  local message, letter, code = ARGV[3 * i - 2], ARGV[3 * i - 1], 1
  if letter == "" and type(redis.pcall("LLEN", KEYS[3 + i])) == "table" then
    code = -1
  elseif redis.call("ZREM", KEYS[1], message) == 0 then
    code = 0
  elseif letter == "" then
    redis.call("RPUSH", KEYS[3 + i], message)
  else
    local time = redis.call("TIME")
    redis.call("HSET", KEYS[2], letter, ARGV[3 * i])
    redis.call("ZADD", KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000), letter)
  end
  codes[i] = code
end
return codes
