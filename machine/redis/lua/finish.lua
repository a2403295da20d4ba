#!lua flags=allow-oom
-- finish.lua: end claims: final state, follow-ups, chord members, dead letter, then the claim itself.
--
-- KEYS[1]    held     HASH    claim id -> message, of the worker that claimed them
-- KEYS[2]    redel    HASH    sha1 of message -> workers that died holding it
-- KEYS[3]    dlq      HASH    dead letter id -> envelope
-- KEYS[4]    dlq:ix   ZSET    dead letter id -> ms
-- KEYS[5]    delayed  ZSET    message -> due, Unix ns
-- KEYS[6]    canceled ZSET    task id -> Unix ms until which its mark is kept
-- KEYS[6+i]  state    STRING  of claim i; held again where it has none
-- KEYS[...]  extras   in the order of ARGV: F state STRING, ready LIST; S state STRING;
--                     M done SET, chords HASH, meta STRING
-- ARGV[1]    n        claims
-- ARGV[2]    kept     s that a final state lives
-- ARGV[3]    created  CreatedAt member to use where no state is kept
-- ARGV[4]    pending  s that a follow-up's PENDING state, and an unfinished group, live
-- ARGV[4+i]  claim    id of claim i
-- ARGV[4+n+i] head    new state up to its CreatedAt member, "" writes none
-- ARGV[...]  extras   each with the claim's number: F i payload pending due(Unix ns or "0")
--                     | S i state(of a task that will never run) | L i letter-id envelope
--                     | M i group member size(0 = always arm) callback
--
-- Returns  a code for each claim: 1 done, 2 done and a chord is armed, 0 not ours, -1 bad key,
--          3 somebody canceled it: nothing is changed, it is to be ended as canceled.
-- Cost     O(n + extras).
local ARGS, NAMES = { F = 5, S = 3, M = 6, L = 4 }, { F = 2, S = 1, M = 3, L = 0 }
-- A state that was written ahead, for Go, which takes a missing one for an error, is as good as none.
local function put(key, state, kept)
  if redis.call("SET", key, state, "NX", "EX", kept) then
    return true
  end
  local old = redis.pcall("GET", key)
  local ahead = type(old) == "string" and string.sub(old, 1, 9) == '{"Ahead":'
  return ahead and redis.call("SET", key, state, "EX", kept)
end
local CANCELED, n = '"State":"FAILURE","Results":null,"Error":"canceled', tonumber(ARGV[1])
local owned = redis.call("HMGET", KEYS[1], unpack(ARGV, 5, 4 + n))
local before = redis.call("MGET", unpack(KEYS, 7, 6 + n))
local crashed = redis.call("EXISTS", KEYS[2]) == 1
local marked = redis.call("EXISTS", KEYS[6]) == 1
local codes, ended, seen, blocked, renewed = {}, {}, {}, {}, {}
-- Lua has no rollback: what a follow-up would stumble over is found before anything is written.
local a, k = 5 + 2 * n, 7 + n
while ARGV[a] do
  local kind = ARGV[a]
  if kind == "F" and type(redis.pcall("LLEN", KEYS[k + 1])) == "table" then
    blocked[tonumber(ARGV[a + 1])] = true
  end
  a, k = a + ARGS[kind], k + NAMES[kind]
end
for i = 1, n do
  local key, head, old, claim = KEYS[6 + i], ARGV[4 + n + i], before[i], ARGV[4 + i]
  local code = owned[i] and not seen[claim] and 1 or 0
  local canceled = marked and head ~= "" and redis.call("ZSCORE", KEYS[6], key)
  seen[claim] = true
  if code == 1 and blocked[i] then
    code = -1
  elseif head ~= "" then
    if old and string.sub(old, 1, 12) ~= '{"TaskUUID":' or not old and redis.call("TYPE", key).ok ~= "none" then
      code = -code
    elseif code == 1 and canceled and string.find(head, CANCELED, 1, true) ~= string.find(head, '"State":"', 1, true) then
      code = 3
    elseif (code == 1 or not old) and not (canceled and old) then
      -- Not ours and no state at all: the server lost its data and nobody will run this again.
      local at = old and string.find(old, '"Attempts":[', 1, true)
      local created = at and string.match(old, '^.*,"CreatedAt":"[^"]*"', at) or old and string.match(old, '"CreatedAt":"[^"]*"')
      redis.call("SET", key, head .. (created or ARGV[3]) .. ',"TTL":0}', "EX", ARGV[2])
    end
  end
  if code == 1 then
    ended[#ended + 1] = claim
    if crashed then
      redis.call("HDEL", KEYS[2], redis.sha1hex(owned[i]))
    end
    if canceled then
      redis.call("ZREM", KEYS[6], key)
    end
  end
  codes[i] = code
end
a, k = 5 + 2 * n, 7 + n
while ARGV[a] do
  local kind, i = ARGV[a], tonumber(ARGV[a + 1])
  if codes[i] == 1 or codes[i] == 2 then
    if kind == "F" then
      if ARGV[a + 3] == "" or put(KEYS[k], ARGV[a + 3], ARGV[4]) then
        if ARGV[a + 4] == "0" then
          redis.call("RPUSH", KEYS[k + 1], ARGV[a + 2])
        else
          redis.call("ZADD", KEYS[5], ARGV[a + 4], ARGV[a + 2])
        end
      end
    elseif kind == "S" then
      put(KEYS[k], ARGV[a + 2], ARGV[2])
    elseif kind == "M" then
      local new, size = redis.call("SADD", KEYS[k], ARGV[a + 3]), tonumber(ARGV[a + 4])
      if not renewed[KEYS[k]] then
        -- Its beginning only, and once in a call: it is as long as the group has members.
        local meta, kept = redis.pcall("GETRANGE", KEYS[k + 2], 0, 12), tonumber(ARGV[4])
        -- The message names this key: what is no group there is not ours to let expire.
        if meta == '{"GroupUUID":' then
          kept = math.max(kept, redis.call("TTL", KEYS[k + 2]))
          redis.call("EXPIRE", KEYS[k + 2], kept)
        end
        redis.call("EXPIRE", KEYS[k], kept)
        renewed[KEYS[k]] = true
      end
      if new == 1 and (size == 0 or redis.call("SCARD", KEYS[k]) == size) then
        redis.call("HSET", KEYS[k + 1], ARGV[a + 2], ARGV[a + 5])
        codes[i] = 2
      end
    else
      local time = redis.call("TIME")
      redis.call("HSET", KEYS[3], ARGV[a + 2], ARGV[a + 3])
      redis.call("ZADD", KEYS[4], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[a + 2])
    end
  end
  a, k = a + ARGS[kind], k + NAMES[kind]
end
if #ended > 0 then
  redis.call("HDEL", KEYS[1], unpack(ended))
end
return codes
