"""The scripts of `redis_permits`: each is one step for everybody, by Redis's own clock.

ARGV[1] is the prefix of the keys, but for `PAUSE`; ARGV[2], for those who tell somebody something,
that of the lists in which workers hear. Of the limit `name` there are `leases:name`,
`calls:name`, `asked:name` and `asking:name`.
"""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

_TELL = """
local prefix, replies = ARGV[1], ARGV[2]
local function tell(name)
  local first = redis.call('ZRANGE', prefix .. 'asked:' .. name, 0, 0)[1]
  if first then
    local worker, line = string.match(first, '^(.-)|(.*)$')
    redis.call('RPUSH', replies .. worker, cjson.encode({{'freed', line}}))
    redis.call('EXPIRE', replies .. worker, 300)
  end
end
"""
"""Who asked first is told that there is room, where it hears the writers' answers."""

TAKE = f"""
{_NOW}
{_TELL}
local line, permit = ARGV[3], ARGV[4]
local lease, pending, fresh = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local ask, begins = tonumber(ARGV[8]), tonumber(ARGV[9])
local options = cjson.decode(ARGV[10])

local function leave(name)
  redis.call('ZREM', prefix .. 'asked:' .. name, line)
  redis.call('ZREM', prefix .. 'asking:' .. name, line)
end

local function enter(name)
  redis.call('ZADD', prefix .. 'asked:' .. name, 'NX', now, line)
  redis.call('ZADD', prefix .. 'asking:' .. name, now, line)
  redis.call('PEXPIRE', prefix .. 'asked:' .. name, fresh)
  redis.call('PEXPIRE', prefix .. 'asking:' .. name, fresh)
end

local function ahead(name)
  local asked, asking = prefix .. 'asked:' .. name, prefix .. 'asking:' .. name
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', asking, '-inf', now - fresh)) do
    redis.call('ZREM', asked, gone)
    redis.call('ZREM', asking, gone)
  end
  return redis.call('ZRANK', asked, line) or redis.call('ZCARD', asked)
end

local function full(bound)
  local first, wait = ahead(bound.name), nil
  if bound.concurrent > 0 then
    local leases = prefix .. 'leases:' .. bound.name
    redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
    if redis.call('ZCARD', leases) + first >= bound.concurrent then wait = ask end
  end
  local calls = prefix .. 'calls:' .. bound.name
  if #bound.rates > 0 then
    redis.call('ZREMRANGEBYSCORE', calls, '-inf', now - bound.longest)
  end
  for _, rate in ipairs(bound.rates) do
    local from = '(' .. string.format('%.0f', now - rate[2])
    local spare = rate[1] - first - redis.call('ZCOUNT', calls, from, '+inf')
    if spare <= 0 then
      local leaves = redis.call('ZRANGEBYSCORE', calls, from, '+inf', 'WITHSCORES',
        'LIMIT', -spare, 1)[2]
      local after = begins
      if leaves and tonumber(leaves) <= now then after = tonumber(leaves) + rate[2] - now + 1 end
      if not wait or after > wait then wait = after end
    end
  end
  return wait
end

local function take(option)
  for _, bound in ipairs(option.bounds) do
    if bound.concurrent > 0 then
      local leases = prefix .. 'leases:' .. bound.name
      redis.call('ZADD', leases, now + lease, permit)
      redis.call('PEXPIRE', leases, lease)
    end
    if #bound.rates > 0 then
      local calls = prefix .. 'calls:' .. bound.name
      redis.call('ZADD', calls, now + pending, permit)
      redis.call('PEXPIRE', calls, bound.longest + pending)
    end
  end
end

local soonest = ask
for chosen, option in ipairs(options) do
  local rests, wait = nil, nil
  for _, name in ipairs(option.pauses) do
    local left = tonumber(redis.call('HGET', KEYS[1], name) or 0) - now
    if left > 0 and (not rests or left > rests) then rests = left end
  end
  for _, bound in ipairs(option.bounds) do
    local after = not rests and full(bound)
    if after then
      enter(bound.name)
      if not wait or after > wait then wait = after end
    else
      leave(bound.name)
    end
  end
  wait = rests or wait
  if not wait then
    take(option)
    for _, each in ipairs(options) do
      for _, bound in ipairs(each.bounds) do leave(bound.name) end
    end
    for _, bound in ipairs(option.bounds) do
      local held = redis.call('ZCARD', prefix .. 'leases:' .. bound.name)
      if held < bound.concurrent then tell(bound.name) end
    end
    return {{chosen, 0}}
  end
  if wait < soonest then soonest = wait end
end
return {{0, soonest}}
"""
"""{number of the option taken, or 0; milliseconds to wait}. What holds a line up is one bound: at
the others it lets those behind it pass. Several permits may be free at once: who takes one tells
the next."""

START = f"""
{_NOW}
for _, each in ipairs(cjson.decode(ARGV[3])) do
  local calls = ARGV[1] .. 'calls:' .. each[1]
  redis.call('ZADD', calls, now, ARGV[2])
  redis.call('PEXPIRE', calls, each[2] + 10000)
end
"""
"""The rate is that of calls as they begin, however long each waited for its grant."""

GIVE_BACK = f"""
{_TELL}
for _, name in ipairs(cjson.decode(ARGV[5])) do
  redis.call('ZREM', prefix .. 'leases:' .. name, ARGV[3])
  if ARGV[4] == '0' then redis.call('ZREM', prefix .. 'calls:' .. name, ARGV[3]) end
  tell(name)
end
"""

RENEW = f"""
{_NOW}
for _, each in ipairs(cjson.decode(ARGV[3])) do
  for _, name in ipairs(each[2]) do
    local leases = ARGV[1] .. 'leases:' .. name
    redis.call('ZADD', leases, now + ARGV[2], each[1])
    redis.call('PEXPIRE', leases, ARGV[2])
  end
end
"""

PAUSE = f"""
{_NOW}
local all = redis.call('HGETALL', ARGV[1])
for i = 1, #all, 2 do
  if tonumber(all[i + 1]) <= now then redis.call('HDEL', ARGV[1], all[i]) end
end
local before = tonumber(redis.call('HGET', ARGV[1], ARGV[2]) or 0)
local till = math.max(before, now + ARGV[3])
redis.call('HSET', ARGV[1], ARGV[2], string.format('%.0f', till))
redis.call('EXPIRE', ARGV[1], 3600)
"""
