-- KEYS: S, entry, lease; for a variant also the generation of its key. ARGV: random, holder, milliseconds of the lease, id of the unfit entry; one
-- more to be told alone whether this script was made for the server that runs it.
if ARGV[5] then
  return asked_run() == RUN and 1 or 0
end

-- The entry, if it holds, without a body that is too large to be taken through a script.
local function find()
  local entry = redis.call('HMGET', KEYS[2], 'check', 'entry', 'body')
  if not entry[1] then
    return nil
  end
  local check = cmsgpack.unpack(entry[1])
  if check[1] == ARGV[4] or RUN ~= '' and string.sub(check[3], -#RUN) ~= RUN then
    return nil
  end
  local holds = validity(check[2], check, 3)
  if holds == 0 then
    return nil
  end
  if KEYS[4] then
    local generation = redis.call('GET', KEYS[4])
    if not generation or generation ~= redis.call('HGET', KEYS[2], 'generation') then
      return nil
    end
  end
  local left = redis.call('PTTL', KEYS[2])
  if left <= 0 then
    return nil
  end
  return { 1, holds, left, entry[2], entry[3] }
end

local found = nil
if RUN ~= '' then
  -- Entries name the server that they were stored on: what holds by a set that was made on this one
  -- needs no more.
  found = find()
end
if not found then
  local epoch = state()
  if RUN == '' then
    found = find()
  end
  if not found then
    local holder = redis.call('GET', KEYS[3])
    if not holder or holder == ARGV[2] then
      redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
      return { 2, epoch, sequence() }
    end
    return { 3, epoch, sequence(), redis.call('PTTL', KEYS[3]) }
  end
end
return found
