#!lua flags=allow-oom
-- release.lua: give claims back to the head of their queue, unchanged and uncounted.
--
-- KEYS[1]  held   HASH  claim id -> message, of the worker that claimed them
-- KEYS[2]  ready  LIST  the queue
-- ARGV[i]  claim  ids, oldest first
--
-- Returns  a code for each claim: 1 given back, 0 not ours.
-- Cost     O(1) each.
local codes = {}
for i = #ARGV, 1, -1 do
  local message = redis.call("HGET", KEYS[1], ARGV[i])
  if message then
    redis.call("LPUSH", KEYS[2], message)
    redis.call("HDEL", KEYS[1], ARGV[i])
  end
  codes[i] = message and 1 or 0
end
return codes
