-- The numbers of a shard are one sorted set, S, without a time to live: the server loses all of
-- them or none.
--
--   \0<epoch>:<run id>      score: the floor; always the first
--   \1<name>,<name>,...     score: the floor; the nodes, if there are any
--   \2<name>                score: up to where the node has applied, and no lower than the floor
--   \3                      score: the floor of keys, if it is above the floor
--   H<scope>, S<scope>      score: the number of its last hard, or soft, invalidation
--
-- Up to the floor of keys, hard invalidations of single keys are forgotten: what they took was
-- deleted with them. Variants are so by their generation, which all those of a key share, and which
-- is deleted in their place: they hold for as long as it is the one that they were stored under. What
-- was asked for before the floor of keys is not stored.
--
-- The highest score is the sequence. The name of a node is <id>:<how many ms it serves>.
--
-- RUN is the run id of the server, in a script that was made for it and that no other server knows;
-- else it is empty.
local S = KEYS[1]

local function asked_run()
  local server = redis.call('INFO', 'server')
  local _, last = string.find(server, 'run_id:', 1, true)
  return string.match(server, '^%w+', last + 1)
end

-- The epoch, the floor and the member that has them. A server that is not the one that the set was
-- made on, because it was restarted, or was a replica, may have lost the last invalidations: it
-- takes a new epoch.
local function state()
  local run = RUN
  if run == '' then
    -- Refused where nothing may be written: a replica is never read. Before a script that was made
    -- for it runs at all, the server sees to that.
    redis.call('ZREM', S, '')
    run = asked_run()
  end
  local head = redis.call('ZRANGE', S, 0, 0, 'WITHSCORES')
  if head[1] then
    local epoch, owner = string.match(head[1], '^%z(%x+):(%w+)$')
    if epoch and owner == run then
      return epoch, tonumber(head[2]), head[1]
    end
  end
  local first = '\0' .. ARGV[1] .. ':' .. run
  redis.call('DEL', S)
  redis.call('ZADD', S, 0, first)
  return ARGV[1], 0, first
end

local function number(score)
  return string.format('%.0f', score)
end

local function sequence()
  return tonumber(redis.call('ZRANGE', S, -1, -1, 'WITHSCORES')[2])
end

-- No fill that began under a lower number is stored.
local function key_floor(floor)
  return math.max(floor, tonumber(redis.call('ZSCORE', S, '\3') or 0))
end

-- Appends the members that decide whether an entry holds: the first of the set as it was when the
-- entry was stored, then what takes the scopes of the arguments from this one on, hard and softly.
local function append_names(list, head, from)
  list[#list + 1] = head
  for _, kind in ipairs({ 'H', 'S' }) do
    for i = from, #ARGV do
      list[#list + 1] = kind .. ARGV[i]
    end
  end
  return list
end

-- 2 for what was filled under f and holds, 1 if it was purged softly, 0 if it is gone; by the
-- names in a list from this one on. A set of another epoch, or made on another server, has not the
-- first of them.
local function validity(f, list, from)
  local scores = redis.call('ZMSCORE', S, unpack(list, from))
  if not scores[1] or f < tonumber(scores[1]) then
    return 0
  end
  local last_hard = 1 + (#scores - 1) / 2
  local holds = 2
  for i = 2, #scores do
    if scores[i] and tonumber(scores[i]) > f then
      if i <= last_hard then
        return 0
      end
      holds = 1
    end
  end
  return holds
end

local function directory()
  local found = redis.call('ZRANGE', S, 1, 1)[1]
  local names = {}
  if found and string.byte(found) == 1 then
    for name in string.gmatch(string.sub(found, 2), '[^,]+') do
      names[#names + 1] = name
    end
    return names, found
  end
  return names, nil
end

