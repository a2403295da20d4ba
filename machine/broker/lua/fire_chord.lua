#!lua flags=allow-oom
-- fire_chord.lua: fire an armed chord, once: queue its callback, or record that it failed.
--
-- KEYS[1]     chords   HASH    group uuid -> callback, armed and not fired
-- KEYS[2]     meta     STRING  the group's meta
-- KEYS[3]     failed   STRING  state of the callback that will never run
-- KEYS[4]     delayed  ZSET    message -> due, Unix ns
-- KEYS[5]     mutex    STRING  Machinery's lock for chords; chords again where Go takes no part
-- KEYS[2i+4]  state    STRING  of message i
-- KEYS[2i+5]  ready    LIST    of message i
-- ARGV[1]     group    uuid
-- ARGV[2]     kept     s that the meta and a failed state live
-- ARGV[3]     pending  s that a message's PENDING state lives
-- ARGV[4]     meta     bytes with ChordTriggered, "" when the meta is gone
-- ARGV[5]     failed   bytes of the FAILURE state, "" when the callback runs
-- ARGV[6]     shared   1 when Go workers may trigger it too, else 0
-- ARGV[3i+4]  payload  bytes of message i
-- ARGV[3i+5]  pending  bytes of its state, "" where states are kept elsewhere
-- ARGV[3i+6]  due      Unix ns, "0" when ready
--
-- Returns  1 when this call fired it, 0 when it was fired before, -1 when a queue is not a list,
--          -2 while a Go worker holds the lock.
-- Cost     O(messages).
for i = 1, (#KEYS - 5) / 2 do
  if type(redis.pcall("LLEN", KEYS[2 * i + 5])) == "table" then
    return -1
  end
end
local meta = redis.pcall("GET", KEYS[2])
local is_group = type(meta) == "string" and string.sub(meta, 1, 13) == '{"GroupUUID":'
if ARGV[6] == "1" then
  -- Nothing runs between two lines of a script: not held is as good as holding it.
  if redis.call("EXISTS", KEYS[5]) == 1 then
    return -2
  end
  redis.call("HDEL", KEYS[1], ARGV[1])
  if is_group and string.find(meta, '"ChordTriggered":true', 1, true) then
    return 0
  end
elseif redis.call("HDEL", KEYS[1], ARGV[1]) == 0 then
  return 0
end
if ARGV[4] ~= "" and is_group then
  redis.call("SET", KEYS[2], ARGV[4], "EX", ARGV[2])
end
if ARGV[5] ~= "" then
  redis.call("SET", KEYS[3], ARGV[5], "NX", "EX", ARGV[2])
end
for i = 1, (#KEYS - 5) / 2 do
  local pending, due = ARGV[3 * i + 5], ARGV[3 * i + 6]
  if pending == "" or redis.call("SET", KEYS[2 * i + 4], pending, "NX", "EX", ARGV[3]) then
    if due == "0" then
      redis.call("RPUSH", KEYS[2 * i + 5], ARGV[3 * i + 4])
    else
      redis.call("ZADD", KEYS[4], due, ARGV[3 * i + 4])
    end
  end
end
return 1
