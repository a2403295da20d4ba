#!lua flags=allow-oom
-- fire_chord.lua: fire an armed chord, once: queue its callback, or record that it failed.
--
-- KEYS[1]    chords   HASH    group uuid -> callback, armed and not fired
-- KEYS[2]    meta     STRING  the group's meta
-- KEYS[3]    delayed  ZSET    message -> due, Unix ns
-- KEYS[4]    mutex    STRING  Machinery's lock for chords; chords again where Go takes no part
-- KEYS[...]  extras   in the order of ARGV: F state STRING, ready LIST; S state STRING;
--                     M done SET, chords HASH, meta STRING
-- ARGV[1]    group    uuid
-- ARGV[2]    kept     s that the meta and a failed state live
-- ARGV[3]    pending  s that a message's PENDING state, and an unfinished group, live
-- ARGV[4]    meta     bytes with ChordTriggered, "" when the meta is gone
-- ARGV[5]    failed   1 when the callback will never run, else 0
-- ARGV[6]    shared   1 when Go workers may trigger it too, else 0
-- ARGV[...]  extras   F payload pending due(Unix ns or "0") | S state(of a task that never runs)
--                     | M group member size(0 = always arm) callback
--
-- Returns  1 when this call fired it, 2 when that armed another chord, 0 when it was fired before,
--          -1 when a queue is not a list, -2 while a Go worker holds the lock.
-- Cost     O(extras).
-- A state that was written ahead, for Go, which takes a missing one for an error, is as good as none.
local function put(key, state, kept)
  if redis.call("SET", key, state, "NX", "EX", kept) then
    return true
  end
  local old = redis.pcall("GET", key)
  local ahead = type(old) == "string" and string.sub(old, 1, 9) == '{"Ahead":'
  return ahead and redis.call("SET", key, state, "EX", kept)
end
local ARGS, NAMES = { F = 4, S = 2, M = 5 }, { F = 2, S = 1, M = 3 }
local a, k, code = 7, 5, 1
while ARGV[a] do
  if ARGV[a] == "F" and type(redis.pcall("LLEN", KEYS[k + 1])) == "table" then
    return -1
  end
  a, k = a + ARGS[ARGV[a]], k + NAMES[ARGV[a]]
end
-- Nothing runs between two lines of a script: not held is as good as holding it.
if ARGV[6] == "1" and redis.call("EXISTS", KEYS[4]) == 1 then
  return -2
end
local meta, armed = redis.pcall("GET", KEYS[2]), redis.call("HDEL", KEYS[1], ARGV[1])
local is_group = type(meta) == "string" and string.sub(meta, 1, 13) == '{"GroupUUID":'
local triggered = is_group and string.find(meta, '"ChordTriggered":true', 1, true)
-- Go marks a chord with a failed member as triggered too, and then tells nobody.
if armed == 0 or ARGV[6] == "1" and triggered and ARGV[5] == "0" then
  return 0
end
if ARGV[4] ~= "" and is_group then
  redis.call("SET", KEYS[2], ARGV[4], "EX", ARGV[2])
end
a, k = 7, 5
while ARGV[a] do
  local kind = ARGV[a]
  if kind == "F" then
    if ARGV[a + 2] == "" or put(KEYS[k], ARGV[a + 2], ARGV[3]) then
      if ARGV[a + 3] == "0" then
        redis.call("RPUSH", KEYS[k + 1], ARGV[a + 1])
      else
        redis.call("ZADD", KEYS[3], ARGV[a + 3], ARGV[a + 1])
      end
    end
  elseif kind == "S" then
    put(KEYS[k], ARGV[a + 1], ARGV[2])
  else
    local new, size = redis.call("SADD", KEYS[k], ARGV[a + 2]), tonumber(ARGV[a + 3])
    local outer, lives = redis.pcall("GETRANGE", KEYS[k + 2], 0, 12), tonumber(ARGV[3])
    -- The message names this key: what is no group there is not ours to let expire.
    if outer == '{"GroupUUID":' then
      lives = math.max(lives, redis.call("TTL", KEYS[k + 2]))
      redis.call("EXPIRE", KEYS[k + 2], lives)
    end
    redis.call("EXPIRE", KEYS[k], lives)
    if new == 1 and (size == 0 or redis.call("SCARD", KEYS[k]) == size) then
      redis.call("HSET", KEYS[k + 1], ARGV[a + 1], ARGV[a + 4])
      code = 2
    end
  end
  a, k = a + ARGS[kind], k + NAMES[kind]
end
return code
