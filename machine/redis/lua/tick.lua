#!lua
-- tick.lua: move an entry of the timetable on to a time, once, and queue what is sent for it.
--
-- KEYS[1]     periodic  HASH    entry -> mark: "<last time served> <last time sent for>", Unix ms
-- KEYS[2]     off       HASH    canceled entries: for them nothing is queued
-- KEYS[2i+1]  state     STRING  of message i; the list again where states are kept elsewhere
-- KEYS[2i+2]  ready     LIST    of message i
-- ARGV[1]     entry     name
-- ARGV[2]     before    mark it must have now, "" for none
-- ARGV[3]     after     mark it gets; one that is not later changes nothing
-- ARGV[4]     most      messages that a list may hold
-- ARGV[5]     kept      s that a PENDING state lives
-- ARGV[2i+4]  payload   bytes of message i
-- ARGV[2i+5]  pending   bytes of its state, "" where states are kept elsewhere
--
-- Returns  1 moved on, 2 moved on with nothing queued since the entry is canceled, 0 somebody else
--          has moved it, -1 a key holds something else, -2 a list is full.
-- Cost     O(messages).
local function last(mark)
  return tonumber(string.match(mark, "^%d+") or "0")
end
local before = redis.call("HGET", KEYS[1], ARGV[1]) or ""
if before ~= ARGV[2] or last(ARGV[3]) <= last(before) then
  return 0
end
-- Asked here, for whoever sends may have looked before it was canceled. The time is over: nothing
-- is made up for when it goes on.
if #KEYS > 2 and redis.call("HEXISTS", KEYS[2], ARGV[1]) == 1 then
  local ran = string.match(before, " (%d+)$") or string.match(before, "^%d+") or "0"
  redis.call("HSET", KEYS[1], ARGV[1], string.match(ARGV[3], "^%d+") .. " " .. ran)
  return 2
end
-- All or nothing: a group of which half fits would be sent again with other ids.
for i = 1, (#KEYS - 2) / 2 do
  local length, old = redis.pcall("LLEN", KEYS[2 * i + 2]), false
  if ARGV[2 * i + 5] ~= "" then
    old = redis.pcall("GET", KEYS[2 * i + 1])
  end
  if type(length) == "table" or type(old) == "table" then
    return -1
  elseif old and string.sub(old, 1, 12) ~= '{"TaskUUID":' then
    return -1
  elseif length >= tonumber(ARGV[4]) then
    return -2
  end
end
redis.call("HSET", KEYS[1], ARGV[1], ARGV[3])
for i = 1, (#KEYS - 2) / 2 do
  local pending = ARGV[2 * i + 5]
  -- A server that lost its last writes may know the state and not the mark: then it was sent.
  if pending == "" or redis.call("SET", KEYS[2 * i + 1], pending, "NX", "EX", ARGV[5]) then
    redis.call("RPUSH", KEYS[2 * i + 2], ARGV[2 * i + 4])
  end
end
return 1
