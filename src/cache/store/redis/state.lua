-- The numbers of a shard are one sorted set, S, without a time to live: the server loses all of
-- them or none.
--
--   \0<epoch>:<run id>      score: the floor; always the first
--   \1<name>,<name>,...     score: the floor; the nodes, if there are any
--   \2<name>                score: up to where the node has applied, and no lower than the floor
--   H<scope>, S<scope>      score: the number of its last hard, or soft, invalidation
--
-- The highest score is the sequence. The name of a node is <id>:<how many ms it serves>.
local S = KEYS[1]

-- The epoch and the floor. A server that is not the one that the set was made on, because it was
-- restarted, or was a replica, may have lost the last invalidations: it takes a new epoch.
local function state()
  -- Refused where nothing may be written: a replica is never read.
  redis.call('ZREM', S, '')
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  local head = redis.call('ZRANGE', S, 0, 0, 'WITHSCORES')
  if head[1] then
    local epoch, owner = string.match(head[1], '^%z(%x+):(%w+)$')
    if epoch and owner == run then
      return epoch, tonumber(head[2])
    end
  end
  redis.call('DEL', S)
  redis.call('ZADD', S, 0, '\0' .. ARGV[1] .. ':' .. run)
  return ARGV[1], 0
end

local function number(score)
  return string.format('%.0f', score)
end

local function sequence()
  return tonumber(redis.call('ZRANGE', S, -1, -1, 'WITHSCORES')[2])
end

-- 2 for what was filled under f and holds, 1 if it was purged softly, 0 if it is gone.
local function validity(f, floor, scopes)
  if f < floor then
    return 0
  end
  local names = {}
  for i, scope in ipairs(scopes) do
    names[i] = 'H' .. scope
    names[#scopes + i] = 'S' .. scope
  end
  local holds = 2
  for i, score in ipairs(redis.call('ZMSCORE', S, unpack(names))) do
    if score and tonumber(score) > f then
      if i <= #scopes then
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

