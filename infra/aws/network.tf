# A VPC with a private subnet in each zone, for nodes and database, and public ones that hold nothing but NAT gateways.

locals {
  own_zones   = var.network == null ? [for letter in var.zones : "${var.region}${letter}"] : []
  own_gateway = length(local.own_zones) == 0 ? 0 : (var.nat_per_zone ? length(local.own_zones) : 1)

  vpc_id             = var.network == null ? aws_vpc.main[0].id : var.network.vpc_id
  private_subnet_ids = var.network == null ? aws_subnet.private[*].id : var.network.private_subnet_ids
}

resource "aws_vpc" "main" {
  count = min(1, length(local.own_zones))

  cidr_block           = var.vpc_cidr
  enable_dns_hostnames = true
  enable_dns_support   = true
  tags                 = { Name = var.name }
}

# Whatever is put into the VPC without a security group of its own can speak to nobody.
resource "aws_default_security_group" "main" {
  count = min(1, length(local.own_zones))

  vpc_id = aws_vpc.main[0].id
}

resource "aws_subnet" "private" {
  count = length(local.own_zones)

  vpc_id            = aws_vpc.main[0].id
  availability_zone = local.own_zones[count.index]
  cidr_block        = cidrsubnet(var.vpc_cidr, 4, count.index)

  tags = {
    Name                              = "${var.name}-private-${local.own_zones[count.index]}"
    "kubernetes.io/role/internal-elb" = "1"
  }
}

resource "aws_subnet" "public" {
  count = length(local.own_zones)

  vpc_id                  = aws_vpc.main[0].id
  availability_zone       = local.own_zones[count.index]
  cidr_block              = cidrsubnet(var.vpc_cidr, 8, 240 + count.index)
  map_public_ip_on_launch = false
  tags                    = { Name = "${var.name}-public-${local.own_zones[count.index]}" }
}

resource "aws_internet_gateway" "main" {
  count = min(1, length(local.own_zones))

  vpc_id = aws_vpc.main[0].id
  tags   = { Name = var.name }
}

resource "aws_route_table" "public" {
  count = min(1, length(local.own_zones))

  vpc_id = aws_vpc.main[0].id
  tags   = { Name = "${var.name}-public" }

  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.main[0].id
  }
}

resource "aws_route_table_association" "public" {
  count = length(local.own_zones)

  subnet_id      = aws_subnet.public[count.index].id
  route_table_id = aws_route_table.public[0].id
}

resource "aws_eip" "nat" {
  count = local.own_gateway

  domain = "vpc"
  tags   = { Name = "${var.name}-nat-${count.index}" }
}

resource "aws_nat_gateway" "main" {
  count = local.own_gateway

  allocation_id = aws_eip.nat[count.index].id
  subnet_id     = aws_subnet.public[count.index].id
  tags          = { Name = "${var.name}-${count.index}" }

  depends_on = [aws_internet_gateway.main]
}

resource "aws_route_table" "private" {
  count = length(local.own_zones)

  vpc_id = aws_vpc.main[0].id
  tags   = { Name = "${var.name}-private-${local.own_zones[count.index]}" }

  route {
    cidr_block     = "0.0.0.0/0"
    nat_gateway_id = aws_nat_gateway.main[count.index % local.own_gateway].id
  }
}

resource "aws_route_table_association" "private" {
  count = length(local.own_zones)

  subnet_id      = aws_subnet.private[count.index].id
  route_table_id = aws_route_table.private[count.index].id
}

# Checkpoints go to S3 by this way: past the NAT gateway, which is paid for by the gigabyte.
resource "aws_vpc_endpoint" "s3" {
  count = min(1, length(local.own_zones))

  vpc_id            = aws_vpc.main[0].id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = aws_route_table.private[*].id
  tags              = { Name = "${var.name}-s3" }
}

# Who spoke to whom, refused or not.
resource "aws_flow_log" "main" {
  count = min(1, length(local.own_zones))

  vpc_id          = aws_vpc.main[0].id
  traffic_type    = "ALL"
  log_destination = aws_cloudwatch_log_group.main["network"].arn
  iam_role_arn    = aws_iam_role.flow_log.arn
}

data "aws_iam_policy_document" "flow_log_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["vpc-flow-logs.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

data "aws_iam_policy_document" "flow_log" {
  statement {
    actions   = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.main["network"].arn}:*"]
  }
}

resource "aws_iam_role" "flow_log" {
  name               = "${var.name}-flow-log"
  assume_role_policy = data.aws_iam_policy_document.flow_log_trust.json
}

resource "aws_iam_role_policy" "flow_log" {
  name   = "write"
  role   = aws_iam_role.flow_log.id
  policy = data.aws_iam_policy_document.flow_log.json
}
