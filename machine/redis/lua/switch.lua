#!lua flags=allow-oom
-- switch.lua: stop an entry of the timetable, or let it go on from now.
--
-- KEYS[1]  off       HASH  canceled entry -> Unix ms when that was done
-- KEYS[2]  periodic  HASH  entry -> mark: "<last time served> <last time sent for>", Unix ms
-- ARGV[1]  entry     name
-- ARGV[2]  canceled  1 to stop it, 0 to let it go on
--
-- Returns  1 changed, 0 it was so already.
-- Cost     O(1).
local was = redis.call("HEXISTS", KEYS[1], ARGV[1])
if was == tonumber(ARGV[2]) then
  return 0
end
local time = redis.call("TIME")
local now = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
if was == 0 then
  redis.call("HSET", KEYS[1], ARGV[1], now)
  return 1
end
redis.call("HDEL", KEYS[1], ARGV[1])
-- Perhaps no scheduler was there meanwhile: what was due until now is over, whatever catches up.
local mark = redis.call("HGET", KEYS[2], ARGV[1]) or ""
local last = string.match(mark, "^%d+")
if last and tonumber(last) < tonumber(now) then
  redis.call("HSET", KEYS[2], ARGV[1], now .. " " .. (string.match(mark, " (%d+)$") or last))
end
return 1
