#!lua flags=allow-oom
-- disarm.lua: take back a chord that was armed before all its members had ended.
--
-- KEYS[1]  chords  HASH  group uuid -> callback, armed and not fired
-- KEYS[2]  done    SET   members that ended on our workers
-- ARGV[1]  group   uuid
-- ARGV[2]  ended   members that had ended when it was found incomplete
--
-- Returns  1 when it was taken back, 0 when another member has ended since and armed it anew.
-- Cost     O(1).
if redis.call("SCARD", KEYS[2]) ~= tonumber(ARGV[2]) then
  return 0
end
return redis.call("HDEL", KEYS[1], ARGV[1])
